"""
Choose the strength: a path from nothing to everything
======================================================

``sa.max_strength`` tells where the path ends: the least strength at which all groups are zero.
Fractions of it are a scale that carries over from one problem to the next.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

import sparse_accel as sa

features, malignant = load_breast_cancer(return_X_y=True)
features = torch.tensor(StandardScaler().fit_transform(features), dtype=torch.float32)
labels = torch.tensor(malignant)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
train, test = order[:400], order[400:]


def fit(strength, steps=400):
    """A linear classifier of 30 features; a group is what both classes read of one feature."""
    layer = nn.Linear(30, 2)
    nn.init.zeros_(layer.weight)
    opt = sa.RMDA(sa.param_groups(layer, sa.GroupLasso(strength, by="input")), lr=0.5, momentum=0.5)

    def closure():
        opt.zero_grad()
        loss = F.cross_entropy(layer(features[train]), labels[train])
        loss.backward()
        return loss

    end = sa.max_strength(opt, closure)  # of the weights at zero
    for _ in range(steps):
        opt.step(closure)
    opt.finalize_()
    return layer, end


# %%
# The end of the path does not depend on the strength: it is the largest gradient of a group at
# zero, over the root of its size.
_, end = fit(0.1, steps=1)
fractions = torch.logspace(0, -3, 16)
norms, scores = [], []
for fraction in fractions:
    layer, _ = fit(end * fraction.item())
    norms.append(layer.weight.detach().norm(dim=0))
    scores.append((layer(features[test]).argmax(1) == labels[test]).float().mean().item())
print(f"max_strength {end:.3f}; features read at a tenth of it: {int((norms[5] > 0).sum())} of 30")

# %%
figure, axes = plt.subplots(1, 2)
axes[0].semilogx(fractions, torch.stack(norms), linewidth=1)
axes[0].set(xlabel="strength / max_strength", ylabel="norm of each feature's weights")
axes[1].semilogx(
    fractions, [100 * (norm > 0).float().mean() for norm in norms], label="features read"
)
axes[1].semilogx(fractions, [100 * score for score in scores], label="accuracy, held out")
axes[1].set(xlabel="strength / max_strength", ylabel="%")
axes[1].legend()
plt.show()
