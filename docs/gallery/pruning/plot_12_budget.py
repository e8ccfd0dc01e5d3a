"""
Spread a budget over the layers
===============================

The same share of every layer is rarely best. ``budget=`` spends multiplications where the outputs
of the whole network gain most.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import sparse_accel as sa

torch.manual_seed(0)
images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float().view(-1, 1, 8, 8) / 16
model = nn.Sequential(
    *(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ),
    *(
        nn.Conv2d(24, 48, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(192, 10),
    ),
)
opt = torch.optim.Adam(model.parameters(), lr=3e-3)
for _epoch in range(6):
    for batch in torch.randperm(1347).split(64):
        opt.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        opt.step()
model.eval()
calibration = images[:256]


def accuracy(network):
    return 100 * (network(images[1347:]).argmax(1) == labels[1347:]).float().mean().item()


# %%
# First the same share of each of the three widths; then the multiplications that this left,
# spread.
uniform = sa.prune.ISpaSP(model, calibration[:1], keep=0.25).run(calibration)
share = uniform.report.macs[1] / uniform.report.macs[0]
spread = sa.prune.ISpaSP(model, calibration[:1], budget={"flops": share}).run(calibration)
for name, result in (("uniform", uniform), ("budget", spread)):
    before, after = result.report.macs
    share_left = f"{after / before:.1%} of the multiplications"
    print(f"{name:8} {share_left}, accuracy {accuracy(result.model):.1f} %")
print(f"dense    accuracy {accuracy(model):.1f} %")

# %%
widths = [f"{width.name}\n{width.units[0]} channels" for width in uniform.report.widths]
place = torch.arange(len(widths))
figure, axis = plt.subplots()
for offset, (name, result) in zip(
    (-0.2, 0.2),
    (("keep=0.25", uniform), (f"budget: {share:.0%} of the flops", spread)),
    strict=True,
):
    kept = {width.name: 100 * width.units[1] / width.units[0] for width in result.report.widths}
    heights = [kept.get(width.name, 100) for width in uniform.report.widths]
    axis.bar(place + offset, heights, width=0.38, label=f"{name}: {accuracy(result.model):.1f} %")
axis.set_xticks(place, widths)
axis.set(ylabel="channels kept, %", ylim=(0, 45))
axis.legend(title="accuracy", loc="upper center", ncols=2)
plt.show()
