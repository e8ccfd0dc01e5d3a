"""
Which weights form a group
==========================

A group is zero together or not at all. ``by`` says what it is: an input channel, a filter, a
single kernel, a weight. The kernels take the weight as it lies in memory, read as ``[blocks,
outer, groups, inner]``, so that nothing is gathered or copied.
"""

import matplotlib.pyplot as plt
import torch

import sparse_accel as sa

# %%
# A convolution with 3 filters on 4 channels. Its weight has the shape [3, 4, 2, 2]; each small
# square below is one number, filters from top to bottom, channels from left to right.
weight = torch.zeros(3, 4, 2, 2)
figure, axes = plt.subplots(1, 4, figsize=(10, 2.7))
for axis, by in zip(axes, ("input", "output", "kernel", "element"), strict=True):
    layout = sa.group_layout(weight, by)
    print(f"{by:8} {layout}")
    # The group of every element, by the layout alone.
    number = (
        torch.arange(layout.groups)
        .view(1, 1, -1, 1)
        .expand(layout.blocks, layout.outer, -1, layout.inner)
    )
    if layout.blocks > 1:
        number = number + layout.groups * torch.arange(layout.blocks).view(-1, 1, 1, 1)
    picture = number.reshape(weight.shape).permute(0, 2, 1, 3).reshape(6, 8)
    axis.imshow((picture * 7) % 20, cmap="tab20", vmin=0, vmax=19)
    axis.set_xticks([1.5, 3.5, 5.5], [])
    axis.set_yticks([1.5, 3.5], [])
    axis.grid(color="white", linewidth=3, alpha=1)
    axis.tick_params(length=0)
    axis.set_title(f'by="{by}"\n{len(picture.unique())} groups')
    for side in axis.spines.values():
        side.set_visible(False)
axes[0].set(ylabel="filters", xlabel="input channels")

# %%
# Scores by group
# ---------------
# All that the penalties, pruners and optimizers ask of a weight is a number for each group. In
# ``channels_last`` memory the layout is another one, and the numbers are the same.
torch.manual_seed(0)
weight = torch.randn(3, 4, 2, 2)
other = weight.contiguous(memory_format=torch.channels_last)
for tensor in (weight, other):
    layout = sa.group_layout(tensor, "input")
    print(layout, sa.ops.group_score([tensor], [layout], kind="l2")[0])
plt.show()
