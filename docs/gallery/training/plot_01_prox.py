"""
What a penalty does to a weight
===============================

A proximal step is the answer to "who is close to x and cheap?". It shrinks, and what it would
shrink past zero it sets to exactly zero: there the zeros of this library come from. First single
numbers, then pairs that form a group.
"""

import matplotlib.pyplot as plt
import torch

import sparse_accel as sa

# %%
# Single weights
# --------------
# ``prox_`` works in place. The L1 penalty subtracts from everything; ``GroupL0`` keeps what is
# large as it is; a constraint takes the nearest number that is allowed.
x = torch.linspace(-2, 2, 401)
penalties = {
    "L1(0.6)": sa.L1(0.6),
    "GroupL0(0.3)": sa.GroupL0(0.3, by="element"),
    "Box(-1.4, 1.4)": sa.Box(-1.4, 1.4),
}

figure, axis = plt.subplots(figsize=(6, 3.6))
for name, penalty in penalties.items():
    z = x.clone()
    penalty.prox_(z)
    axis.plot(x, z, label=name)
axis.plot(x, x, color="gray", linewidth=0.8, linestyle=":")
axis.set(xlabel="weight before", ylabel="after the step", title="One weight")
axis.legend()
plt.show()

# %%
# Groups of two
# -------------
# Each column of a ``[2, n]`` weight is one input channel, a group of two weights. The group lasso
# pulls pairs towards the origin and keeps their direction: a pair is zero as a whole or not at
# all, where L1 would have zeroed one of the two.
angles = torch.linspace(0, 2 * torch.pi, 25)[:-1]
pairs = torch.cat(
    [radius * torch.stack([angles.cos(), angles.sin()]) for radius in (0.6, 1.2, 1.8)], dim=1
)
moved = pairs.clone()
sa.GroupLasso(0.5, by="input").prox_(moved)

zero = (moved == 0).all(0)
print(
    f"{int(zero.sum())} of {len(zero)} pairs are zero; threshold 0.5 * sqrt(2) = {0.5 * 2**0.5:.2f}"
)
step = moved - pairs
figure, axis = plt.subplots(figsize=(6, 4.6))
axis.quiver(*pairs, *step, angles="xy", scale_units="xy", scale=1, width=0.004, color="tab:gray")
axis.scatter(*moved[:, ~zero], s=14, color="tab:blue", zorder=3, label="kept, shorter")
axis.scatter([0], [0], s=50, color="tab:red", zorder=3, label="the inner ring: zero")
axis.set(xlabel="first weight of the pair", ylabel="second", title="GroupLasso: pairs")
axis.set_aspect("equal")
axis.legend(loc="upper right", frameon=True)
plt.show()
