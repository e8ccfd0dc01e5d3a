"""
Which layer suffers?
====================

A report tells the error of every layer, relative to what it computed before. Some layers are hard
to thin out; the same total can be shared out by their marginal errors.
"""

from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import sparse_accel as sa

torch.manual_seed(0)
images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
widths = [64, 160, 96, 96, 48, 10]
model = nn.Sequential()
for size_in, size_out in pairwise(widths):
    model.extend([nn.Linear(size_in, size_out), nn.ReLU()])
model = model[:-1]
opt = torch.optim.Adam(model.parameters(), lr=2e-3)
for _epoch in range(15):
    for batch in torch.randperm(1347).split(64):
        opt.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        opt.step()

# %%
# 80 % zeros in every layer, or 80 % of all.
reports = {}
for allocation in ("uniform", "global"):
    result = sa.prune.CurvatureIHT(model, 0.8, allocation=allocation).run(images[:1347])
    right = (result.model(images[1347:]).argmax(1) == labels[1347:]).float().mean().item()
    reports[f'allocation="{allocation}"'] = result.report
    print(result.report)
    print(f"accuracy {right:.3f}")

# %%
names = [f"{layer.name}\n{layer.shape[0]}×{layer.shape[1]}" for layer in result.report.layers]
place = torch.arange(len(names))
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for offset, (name, report) in zip((-0.2, 0.2), reports.items(), strict=True):
    axes[0].bar(
        place + offset, [100 * layer.sparsity for layer in report.layers], width=0.38, label=name
    )
    axes[1].bar(place + offset, [layer.error for layer in report.layers], width=0.38)
axes[0].set(ylabel="zeros, %", ylim=(0, 125))
axes[1].set(ylabel="relative output error")
axes[0].legend(loc="upper left", ncols=2, fontsize=8)
for axis in axes:
    axis.set_xticks(place, names, fontsize=8)
plt.show()
