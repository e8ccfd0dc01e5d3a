"""
Steps that are stable for any learning rate
===========================================

SGD with momentum diverges where ``lr * eigenvalue >= 2 + 2 * momentum``. The proximal point method takes the gradient
at the *new* point and has no such limit.
"""

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

import sparse_accel as sa

# %%
# The law
# -------
# On one eigenvalue of a quadratic the iteration has two roots; the larger one is the rate. It is below one everywhere;
# SGD with momentum loses that right of the red line.
lrs, momenta = torch.logspace(-2, 3, 61).tolist(), torch.linspace(0, 1, 41).tolist()
rates = [[sa.sppam.convergence_rate(lr, momentum, 1.0) for lr in lrs] for momentum in momenta]

figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.7))
picture = axes[0].pcolormesh(lrs, momenta, rates, cmap="Blues", vmin=0, vmax=1, rasterized=True)
axes[0].plot([2 + 2 * momentum for momentum in momenta], momenta, color="tab:red", label="SGDM diverges right of it")
axes[0].plot(lrs, [sa.sppam.optimal_momentum(lr, 1.0) for lr in lrs], "k--", label="fastest momentum")
axes[0].set(
    xscale="log", ylim=(0, 1), xlabel="lr × eigenvalue", ylabel="momentum", title="SPPAM: factor of the error per step"
)
axes[0].legend(loc="upper right", fontsize=8, frameon=True)
axes[0].grid(False)
figure.colorbar(picture, ax=axes[0])

# %%
# A logistic regression
# ---------------------
# One pass over 2,000 rows, one row at a time, at learning rates over six decades. ``glm_epoch`` solves each implicit
# step to rounding, in one native call; explicit steps take the gradient where they stand. Both are judged by the mean
# of the second half of their iterates.
torch.manual_seed(0)
rows = torch.randn(4000, 20, dtype=torch.float64)
targets = torch.bernoulli((rows @ torch.randn(20, dtype=torch.float64)).sigmoid())
lrs = torch.logspace(-3, 3, 13).tolist()


def held_out(x):
    return F.binary_cross_entropy_with_logits(rows[2000:] @ x, targets[2000:]).item()


implicit, explicit = [], []
for lr in lrs:
    x, before, average = torch.zeros(3, 20, dtype=torch.float64)
    sa.glm_epoch(
        x, before, rows, targets, torch.arange(2000), lr, family="binomial", average=average, average_start=1000
    )
    implicit.append(held_out(average))
    x, average = torch.zeros(2, 20, dtype=torch.float64)
    for step, (row, target) in enumerate(zip(rows[:2000], targets[:2000], strict=True)):
        x -= lr * (torch.sigmoid(row @ x) - target) * row
        if step >= 1000:
            average += x / 1000
    explicit.append(held_out(average))
print(f"learning rate 1000: SPPA {implicit[-1]:.2f}, SGD {explicit[-1]:.0f}")

axes[1].loglog(lrs, explicit, "s--", color="tab:red", label="SGD, explicit")
axes[1].loglog(lrs, implicit, "o-", label="SPPA, implicit")
axes[1].axhline(0.693, color="gray", linewidth=0.8, linestyle=":", label="knowing nothing")
axes[1].set(xlabel="learning rate", ylabel="log-loss, held out", title="Logistic regression, one pass")
axes[1].legend(fontsize=8)
plt.show()
