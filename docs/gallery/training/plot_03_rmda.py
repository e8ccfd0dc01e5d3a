"""
Train to structured sparsity
============================

RMDA under a group lasso on the digits: while the network learns, whole pixels and whole neurons
become exactly zero. The first layer's groups are the pixels, so that one can see which are read.
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
train, test = torch.randperm(len(images)).split([1347, 450])
model = nn.Sequential(
    nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
)

# %%
# The optimizer takes the place of SGD in the loop. At a milestone it restarts its average from the
# weights as they are, with a smaller step.
opt = sa.RMDA(sa.param_groups(model, sa.GroupLasso(5e-4, by="input")), lr=1.0, momentum=0.1)
schedule = sa.lr_scheduler.MultiStageLR(opt, milestones=[20, 40], gamma=0.1, momentum="divide")
zeros, accuracy = [], []
for _epoch in range(50):
    for batch in train[torch.randperm(len(train))].split(64):
        opt.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        opt.step()
    schedule.step()
    with opt.proximal_parameters():  # the iterate that has the exact zeros
        zeros.append([layer.zero_groups / layer.groups for layer in sa.sparsity(model).layers])
        accuracy.append((model(images[test]).argmax(1) == labels[test]).float().mean().item())
opt.finalize_()
print(sa.sparsity(model, by="input"))

# %%
# Border pixels say nothing about a digit, and nothing of the network reads them in the end.
figure, axes = plt.subplots(1, 3, figsize=(10, 3.3), width_ratios=[1.5, 1, 1])
for name, line in zip(
    ["pixels", "neurons of layer 1", "neurons of layer 2"], zip(*zeros, strict=True), strict=True
):
    axes[0].plot([100 * share for share in line], label=f"zero: {name}")
axes[0].plot([100 * share for share in accuracy], color="gray", linestyle="--", label="accuracy")
axes[0].set(xlabel="epoch", ylabel="%", ylim=(0, 140), yticks=range(0, 101, 20))
axes[0].legend(fontsize=7, loc="upper center", ncols=2)
norms = model[0].weight.detach().norm(dim=0).view(8, 8)
for axis, picture, title in (
    (axes[1], images.mean(0).view(8, 8), "mean digit"),
    (axes[2], norms, "weight on each pixel"),
):
    axis.imshow(picture, cmap="Blues")
    axis.set(title=title, xticks=[], yticks=[])
    axis.grid(False)
for row, column in (norms == 0).nonzero().tolist():
    axes[2].text(column, row, "0", ha="center", va="center", color="tab:red", fontsize=8)
plt.show()
