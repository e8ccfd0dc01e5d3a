"""
Two networks, connected
=======================

Two networks trained from different starts lie far apart, and on the straight line between them
the loss is high. A path with corners, which lets one half of the units work while the other half
moves, stays low.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import sparse_accel as sa

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16


def trained(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _epoch in range(8):
        for batch in torch.randperm(1347).split(64):
            opt.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            opt.step()
    return model


# %%
# ``path(t)`` is a state dict for every t in [0, 1]; the report has the losses along it, along the
# straight line, and along the line to the second network with its units in the order that fits the
# first one's best.
first, second = trained(0), trained(1)
data = (images[:1347], labels[:1347])
path = sa.diagnostics.low_loss_path(first, second, F.cross_entropy, data, refit=True, points=12)
print(path)

# %%
probe = trained(2)
times = torch.linspace(0, 1, 61).tolist()
along = []
for t in times:
    probe.load_state_dict(path(t))
    with torch.no_grad():
        along.append(F.cross_entropy(probe(data[0]), data[1]).item())
figure, axis = plt.subplots(figsize=(7.5, 3.6))
axis.plot(times, along, label=f"path: barrier {path.barrier:.2g}")
even = torch.linspace(0, 1, len(path.straight))
axis.plot(even, path.straight, label=f"straight line: {path.barrier_of('straight'):.2g}")
axis.plot(even, path.aligned, label=f"units aligned: {path.barrier_of('aligned'):.2g}")
axis.set(xlabel="t", ylabel="training loss")
axis.legend()
plt.show()
