"""
Mend a pruned network without labels
====================================

Least squares mend each reader of a width. ``refine`` fits what is left to the dense network,
block by block and at the outputs, on the same unlabelled inputs; others, held out, judge.
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
model = nn.Sequential(
    nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
)
opt = torch.optim.Adam(model.parameters(), lr=2e-3)
for _epoch in range(15):
    for batch in torch.randperm(1347).split(64):
        opt.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        opt.step()


def accuracy(network):
    return 100 * (network(images[1347:]).argmax(1) == labels[1347:]).float().mean().item()


# %%
# The dense network is the teacher: the labels of ``calibration`` are never looked at. A function
# as ``progress=`` sees the held-out error of every look.
calibration = images[:1347]
keeps = [0.05, 0.08, 0.12, 0.2]
curves, scores = {}, {"pruned": [], "refined": []}
for keep in keeps:
    pruned = sa.prune.ISpaSP(model, calibration[:1], keep=keep).run(calibration)
    seen = curves.setdefault(keep, [])

    def tell(step, _steps, error, seen=seen):
        seen.append((step, error))

    refined = sa.prune.refine(pruned, model, calibration, steps=300, progress=tell)
    scores["pruned"].append(accuracy(pruned.model))
    scores["refined"].append(accuracy(refined.model))
print(refined.report)

# %%
figure, axes = plt.subplots(1, 2)
for keep, seen in curves.items():
    axes[0].semilogy(
        *zip(*[(step, error) for step, error in seen if error is not None], strict=True),
        ".-",
        label=f"keep={keep}",
    )
axes[0].set(xlabel="step", ylabel="error of the outputs, held out", ylim=(None, 1))
axes[0].legend(fontsize=8, ncols=2)
for name, values in scores.items():
    axes[1].plot([100 * keep for keep in keeps], values, "o-", label=name)
axes[1].axhline(accuracy(model), color="gray", linewidth=0.8, linestyle="--", label="dense")
axes[1].set(xlabel="neurons kept, %", ylabel="accuracy, %")
axes[1].legend(fontsize=8)
plt.show()
