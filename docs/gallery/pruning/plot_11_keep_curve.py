"""
How many channels does it need?
===============================

A trained network on the digits, pruned in one shot to ever fewer neurons on inputs without
labels. The choice of the neurons matters less than what is done to the layers that read them.
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
# Five ways to choose and to mend; without a refit a network would have to be fine-tuned now.
# ``ispasp`` is the paper's greedy selection, ``gram_obs`` removes the neuron whose loss the others
# make up for best.
ways = {
    "magnitude": {"method": "magnitude", "refit": None},
    "Gram-OBS, no refit": {"method": "gram_obs", "refit": None},
    "magnitude, refit": {"method": "magnitude"},
    "i-SpaSP, refit": {"method": "ispasp"},
    "Gram-OBS, refit (default)": {},
}
keeps = [0.03, 0.06, 0.1, 0.15, 0.25, 0.5]
calibration = images[:512]
figure, axis = plt.subplots(figsize=(9, 4))
for name, options in ways.items():
    scores = [
        accuracy(sa.prune.ISpaSP(model, calibration[:1], keep, **options).run(calibration).model)
        for keep in keeps
    ]
    print(f"{name:26}", "  ".join(f"{score:5.1f}" for score in scores))
    axis.plot([100 * keep for keep in keeps], scores, "o-", label=name)
axis.axhline(accuracy(model), color="gray", linewidth=0.8, linestyle="--", label="dense")
axis.set(xlabel="neurons kept in each layer, %", ylabel="accuracy, %", xscale="log")
axis.set_xticks([100 * keep for keep in keeps], [f"{100 * keep:g}" for keep in keeps])
axis.minorticks_off()
axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
