"""
Steps that are stable for any learning rate
===========================================

SGD with momentum diverges where ``lr * eigenvalue >= 2 + 2 * momentum``. The proximal point
method takes the gradient at the *new* point and has no such limit.
"""

import matplotlib.pyplot as plt
import torch

import sparse_accel as sa

# %%
# On one eigenvalue of a quadratic the iteration has two roots; the larger one is the rate. It is
# below one everywhere; SGD with momentum loses that right of the red line.
lrs, momenta = torch.logspace(-2, 3, 61).tolist(), torch.linspace(0, 1, 41).tolist()
rates = [[sa.sppam.convergence_rate(lr, momentum, 1.0) for lr in lrs] for momentum in momenta]

figure, axis = plt.subplots(figsize=(6.5, 3.8))
picture = axis.pcolormesh(lrs, momenta, rates, cmap="Blues", vmin=0, vmax=1, rasterized=True)
axis.plot(
    [2 + 2 * momentum for momentum in momenta],
    momenta,
    color="tab:red",
    label="SGDM diverges right of it",
)
axis.plot(lrs, [sa.sppam.optimal_momentum(lr, 1.0) for lr in lrs], "k--", label="fastest momentum")
axis.set(
    xscale="log",
    ylim=(0, 1),
    xlabel="lr × eigenvalue",
    ylabel="momentum",
    title="SPPAM: factor of the error per step",
)
axis.legend(loc="upper right", fontsize=8, frameon=True)
axis.grid(False)
figure.colorbar(picture, ax=axis)
plt.show()
