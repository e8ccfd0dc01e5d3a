"""
Single weights by curvature
===========================

The smallest weights are not those that matter least: inputs that go together make up for one
another. ``CurvatureIHT`` asks the second moments of each layer's inputs.
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
# Every method keeps exactly the same number of weights in each layer; they differ in which, and in
# the values of what stays.
methods = {
    "magnitude": "magnitude",
    "sparsegpt": "SparseGPT",
    "admm": "ADMM + CG (ALPS)",
    "iht": "curvature IHT",
}
shares = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
calibration = images[:1347]
figure, axes = plt.subplots(1, 2)
for method, name in methods.items():
    results = [
        sa.prune.CurvatureIHT(model, share, method=method).run(calibration) for share in shares
    ]
    scores = [accuracy(result.model) for result in results]
    changes = [
        F.mse_loss(result.model(images[1347:]), model(images[1347:])).item() for result in results
    ]
    print(f"{name:18}", "  ".join(f"{score:5.1f}" for score in scores))
    axes[0].plot([100 * share for share in shares], scores, "o-", label=name)
    axes[1].semilogy([100 * share for share in shares], changes, "o-", label=name)
axes[0].axhline(accuracy(model), color="gray", linewidth=0.8, linestyle="--")
axes[0].set(xlabel="zeros, %", ylabel="accuracy, % (dashed: dense)")
axes[1].set(xlabel="zeros, %", ylabel="squared change of the outputs, held out")
axes[0].legend(fontsize=8)
plt.show()
