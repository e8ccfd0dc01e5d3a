"""
Ask for a share of zeros instead of a strength
==============================================

What strength gives 60 % zero groups? ``target=0.6`` leaves the question to the optimizer, which
moves the strength while it trains.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import sparse_accel as sa

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16


def run(target, ramp=400, steps=1000):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    groups = sa.param_groups(model, sa.GroupLasso(target=target, ramp=ramp))
    opt = sa.RMDA(groups, lr=1.0, momentum=0.1)
    schedule = sa.lr_scheduler.MultiStageLR(
        opt, milestones=[600, 800], gamma=0.1, momentum="divide"
    )
    rows = []
    for step in range(steps):
        batch = torch.randint(1347, (64,))
        opt.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        opt.step()
        schedule.step()
        if step % 20 == 0:
            with opt.proximal_parameters():
                rows.append(
                    (
                        step,
                        100 * sa.sparsity(model).group_sparsity,
                        opt.param_groups[0]["penalty"]["strength"],
                    )
                )
    opt.finalize_()
    right = (model(images[1347:]).argmax(1) == labels[1347:]).float().mean().item()
    found = sa.sparsity(model).group_sparsity
    print(f"target {target:.0%}: {found:.1%} zero groups, accuracy {right:.1%}")
    return zip(*rows, strict=True)


# %%
# The share that is wanted grows over the first ``ramp`` steps along x²(3 − 2x), and stays. At each
# look the strength moves to where the right number of groups is zero. The dips are the ends of
# stages: RMDA's average begins anew there.
figure, axes = plt.subplots(1, 2)
for target in (0.3, 0.6, 0.8):
    steps, shares, strengths = run(target)
    (line,) = axes[0].plot(steps, shares, label=f"target={target}")
    axes[0].axhline(100 * target, color=line.get_color(), linewidth=0.8, linestyle=":")
    axes[1].semilogy(steps[1:], strengths[1:], color=line.get_color())
axes[0].set(xlabel="step", ylabel="zero groups, %", ylim=(0, 120), yticks=range(0, 101, 20))
axes[0].legend(loc="upper right", ncols=3, fontsize=8)
axes[1].set(xlabel="step", ylabel="strength found")
for axis in axes:
    axis.axvline(400, color="gray", linewidth=0.8)
plt.show()
