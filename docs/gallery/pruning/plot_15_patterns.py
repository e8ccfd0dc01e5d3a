"""
Patterns of zeros, pictured
===========================

The same layer made half sparse five times: free choice, the same share of each row, 2 of every 4
neighbours, whole input channels, whole outputs. The freer the choice, the smaller the error.
"""

import matplotlib.pyplot as plt
import torch

import sparse_accel as sa

# %%
# A layer of 16 outputs on 32 inputs that go together in four bundles, and the second moments of
# the inputs: all that a solver needs to know of the data.
torch.manual_seed(0)
sources = torch.randn(2000, 4)
inputs = sources.repeat_interleave(8, dim=1) + 0.7 * torch.randn(2000, 32)
weight = torch.randn(16, 32) / 32**0.5
hessian = inputs.T @ inputs

targets = {
    "0.5": 0.5,
    "Rows(0.5)": sa.Rows(0.5),
    '"2:4"': "2:4",
    'GroupSparsity(0.5,\nby="input")': sa.GroupSparsity(0.5, by="input"),
    'GroupSparsity(0.5,\nby="output")': sa.GroupSparsity(0.5, by="output"),
}
figure, axes = plt.subplots(1, 5, figsize=(11, 2.7))
for axis, (name, target) in zip(axes, targets.items(), strict=True):
    sparse = sa.prune.layerwise_solve(weight, hessian, target, iterations=32)
    magnitude = sa.prune.layerwise_solve(weight, hessian, target, method="magnitude", refit=0)
    kept = sparse != 0
    print(f"{int(kept.sum())} of {kept.numel()} kept, error {sparse.info.error:.3f}")
    scale = weight.abs().max()
    axis.imshow(sparse.where(kept, torch.nan), cmap="RdBu", vmin=-scale, vmax=scale, aspect="auto")
    axis.set_facecolor("0.93")
    axis.set(
        xticks=[],
        yticks=[],
        title=name,
        xlabel=f"error {sparse.info.error:.3f}\nmagnitude {magnitude.info.error:.3f}",
    )
    axis.title.set_fontsize(9)
    axis.grid(False)
axes[0].set_ylabel("outputs")

# %%
# The choice beneath is one call, in place, with ties to the lowest index; it makes masks by any
# score.
mask = sa.topk_threshold_(weight.clone(), None, (2, 4)) != 0
assert mask.view(16, 8, 4).sum(-1).eq(2).all()
plt.show()
