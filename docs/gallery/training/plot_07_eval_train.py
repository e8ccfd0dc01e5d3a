"""
Two iterates: the one that trains and the one with zeros
========================================================

With momentum the training weights only approach a zero group; its exact zeros are those of the
*proximal iterate*. ``opt.eval()`` swaps it into the model, ``opt.train()`` brings the training
weights back, to the bit.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import sparse_accel as sa

torch.manual_seed(0)
images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
opt = sa.RMDA(sa.param_groups(model, sa.GroupLasso(2e-3, by="input")), lr=0.5, momentum=0.05)
for _step in range(250):
    batch = torch.randint(1347, (64,))
    opt.zero_grad()
    F.cross_entropy(model(images[batch]), labels[batch]).backward()
    opt.step()

# %%
# The same model, looked at three times.
training = model[2].weight.detach().clone()
opt.eval()  # Trainer and accelerate call this by themselves before they evaluate or save
proximal = model[2].weight.detach().clone()
accuracy = (model(images[1347:]).argmax(1) == labels[1347:]).float().mean().item()
opt.train()
assert torch.equal(model[2].weight, training)
zeros = [int((weight == 0).all(0).sum()) for weight in (training, proximal)]
print(f"zero groups: {zeros[0]} while training, {zeros[1]} in eval mode")
print(f"accuracy in eval mode: {accuracy:.3f}")

# %%
# One point for each of the 128 groups of the last layer. On the axis: groups that are zero in eval
# mode, while the training weights still are on their way.
before, after = training.norm(dim=0), proximal.norm(dim=0)
figure, axes = plt.subplots(1, 2)
axes[0].scatter(before, after, s=12, c=["tab:red" if norm == 0 else "tab:blue" for norm in after])
axes[0].plot([0, before.max()], [0, before.max()], color="gray", linewidth=0.8, linestyle=":")
axes[0].set(
    xlabel="norm of the training weights",
    ylabel="norm in eval mode",
    title="Groups of the last layer",
)
ranks = range(len(before))
axes[1].semilogy(ranks, before.sort(descending=True).values, label="train()")
axes[1].semilogy(
    ranks,
    after.sort(descending=True).values.where(after.sort(descending=True).values > 0, torch.nan),
    label="eval()",
)
axes[1].set(xlabel="groups, by norm", ylabel="norm", title="Sorted")
axes[1].legend()
plt.show()
