"""
Wide networks can do without any half of their units
====================================================

In a wide layer trained by SGD the units are many draws of few kinds. Drop a random half, rescale
the rest: the loss hardly changes, the less the wider the layer.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import sparse_accel as sa

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
widths = [32, 64, 128, 256, 512, 1024]


def trained(width):
    torch.manual_seed(width)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _epoch in range(10):
        for batch in torch.randperm(1347).split(64):
            opt.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            opt.step()
    return model


# %%
# The diagnostic runs on a copy. ``refit=True`` lets least squares make up for what was dropped,
# instead of one factor for all.
data = (images[:1347], labels[:1347])
changes = {"rescaled": [], "refitted": []}
for width in widths:
    model = trained(width)
    for name, refit in (("rescaled", False), ("refitted", True)):
        report = sa.diagnostics.dropout_stability(
            model, F.cross_entropy, data, keep=0.5, trials=8, refit=refit
        )
        changes[name].append(report.layers[0].change)
print(report)

# %%
figure, axis = plt.subplots(figsize=(7, 3.6))
for name, values in changes.items():
    axis.loglog(widths, [abs(value) for value in values], "o-", label=f"half dropped, {name}")
reference = [(torch.tensor(width).log() / width).sqrt().item() for width in widths]
axis.loglog(widths, reference, color="gray", linestyle=":", label="√(log M / M)")
axis.set(xlabel="width M", ylabel="change of the loss")
axis.set_xticks(widths, widths)
axis.minorticks_off()
axis.legend()
plt.show()
