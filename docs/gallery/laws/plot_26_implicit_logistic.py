"""
Implicit steps on a logistic regression
=======================================

One pass over 2,000 rows, one row at a time, at learning rates over six decades: steps that ask
for the gradient where they land, beside SGD, which asks where it stands.
"""

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

import sparse_accel as sa

# %%
# ``glm_epoch`` solves each implicit step to rounding, in one native call; explicit steps take the
# gradient where they stand. Both are judged by the mean of the second half of their iterates.
torch.manual_seed(0)
rows = torch.randn(4000, 20, dtype=torch.float64)
targets = torch.bernoulli((rows @ torch.randn(20, dtype=torch.float64)).sigmoid())
lrs = torch.logspace(-3, 3, 13).tolist()


def held_out(x):
    return F.binary_cross_entropy_with_logits(rows[2000:] @ x, targets[2000:]).item()


implicit, explicit = [], []
for lr in lrs:
    x, before, average = torch.zeros(3, 20, dtype=torch.float64)
    mean = {"average": average, "average_start": 1000}
    sa.glm_epoch(x, before, rows, targets, torch.arange(2000), lr, family="binomial", **mean)
    implicit.append(held_out(average))
    x, average = torch.zeros(2, 20, dtype=torch.float64)
    for step, (row, target) in enumerate(zip(rows[:2000], targets[:2000], strict=True)):
        x -= lr * (torch.sigmoid(row @ x) - target) * row
        if step >= 1000:
            average += x / 1000
    explicit.append(held_out(average))
print(f"learning rate 1000: SPPA {implicit[-1]:.2f}, SGD {explicit[-1]:.0f}")

figure, axis = plt.subplots(figsize=(6.5, 3.6))
axis.loglog(lrs, explicit, "s--", color="tab:red", label="SGD, explicit")
axis.loglog(lrs, implicit, "o-", label="SPPA, implicit")
axis.axhline(0.693, color="gray", linewidth=0.8, linestyle=":", label="knowing nothing")
axis.set(xlabel="learning rate", ylabel="log-loss, held out", title="Logistic regression, one pass")
axis.legend(fontsize=8)
plt.show()
