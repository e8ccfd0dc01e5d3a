"""
Zeros over time: RAMDA and ProxAdamW
====================================

ProxAdamW decides on zeros anew with every noisy batch; RAMDA decides on the average of all
gradients of a stage. So the same strength gives them different numbers of zeros, and the two are
compared by what accuracy is left at how many zeros.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import sparse_accel as sa

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16


def run(optimizer, strength, **options):
    """The share of zero groups after each epoch, and the accuracy in the end."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10))
    opt = optimizer(sa.param_groups(model, sa.GroupLasso(strength, by="input")), **options)
    schedule = sa.lr_scheduler.MultiStageLR(opt, milestones=[12, 18], gamma=0.1)
    shares = []
    for _epoch in range(24):
        for batch in torch.randperm(1347).split(64):
            opt.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            opt.step()
        schedule.step()
        with opt.proximal_parameters():
            shares.append(100 * sa.sparsity(model).group_sparsity)
    opt.finalize_()
    right = 100 * (model(images[1347:]).argmax(1) == labels[1347:]).float().mean().item()
    name = f"{optimizer.__name__:9} strength {strength:.1e}"
    print(f"{name}: {shares[-1]:5.1f} % zero groups, accuracy {right:.1f} %")
    return shares, right


# %%
# A milestone ends a stage: the learning rate goes down to a tenth and RAMDA's average begins anew,
# from the weights as they are.
figure, axes = plt.subplots(1, 2)
for optimizer, options, strengths in (
    (sa.RAMDA, {"lr": 0.03, "momentum": 0.1}, [3e-4, 6e-4, 1e-3, 2e-3]),
    (sa.ProxAdamW, {"lr": 3e-3, "weight_decay": 0.0}, [3e-4, 1e-3, 1.5e-3, 2e-3]),
):
    runs = {strength: run(optimizer, strength, **options) for strength in strengths}
    axes[0].plot(runs[1e-3][0], label=optimizer.__name__)
    axes[1].plot(*zip(*[(shares[-1], right) for shares, right in runs.values()], strict=True), "o-")
for epoch in (12, 18):
    axes[0].axvline(epoch, color="gray", linewidth=0.8, linestyle="--")
axes[0].set(xlabel="epoch", ylabel="zero groups, %", ylim=(0, None), title="strength 1e-3")
axes[1].set(xlabel="zero groups in the end, %", ylabel="accuracy, %", title="four strengths each")
axes[0].legend(loc="upper left")
plt.show()
