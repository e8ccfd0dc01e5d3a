"""
Watch the zeros while training
==============================

``SparsityHistory`` measures at the proximal iterate after each epoch, beside whatever else you
record. It is a report: a table, a picture, a page, JSON.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import sparse_accel as sa

torch.manual_seed(0)
images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float().view(-1, 1, 8, 8) / 16
model = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(128, 10)),
)
opt = sa.RMDA(sa.param_groups(model, sa.GroupLasso(2e-3, by="input")), lr=0.2, momentum=0.1)
schedule = sa.lr_scheduler.MultiStageLR(opt, milestones=[9, 13], gamma=0.1, momentum="divide")
history = sa.callbacks.SparsityHistory(model, opt)

# %%
# A row for every epoch; keywords of your own go along.
for epoch in range(16):
    for batch in torch.randperm(1347).split(64):
        opt.zero_grad()
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        opt.step()
    schedule.step()
    with opt.proximal_parameters(), torch.no_grad():
        held_out = F.cross_entropy(model(images[1347:]), labels[1347:]).item()
    row = history.record(epoch, loss=loss.item(), held_out=held_out)
print(history)

# %%
# ``history.plot("zeros.png")`` draws it; the rows are plain values for a picture of one's own. A
# group of this network is an input channel, and channels differ in size: two shares.
epochs = [row["step"] for row in history.rows]
figure, axes = plt.subplots(1, 2)
axes[0].plot(epochs, [100 * row["group_sparsity"] for row in history.rows], label="of the groups")
axes[0].plot(
    epochs, [100 * row["weighted_group_sparsity"] for row in history.rows], label="of their weights"
)
axes[0].set(xlabel="epoch", ylabel="zero, %", ylim=(0, None))
axes[1].plot(epochs, [row["loss"] for row in history.rows], label="last batch")
axes[1].plot(epochs, [row["held_out"] for row in history.rows], label="held out, with the zeros")
axes[1].set(xlabel="epoch", ylabel="loss", yscale="log")
for axis in axes:
    axis.legend()
plt.show()
