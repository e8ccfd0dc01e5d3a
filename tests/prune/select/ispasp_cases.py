"""The paper's i-SpaSP loop written as it stands: residuals of every sample, scores by autograd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DATA = Path(__file__).resolve().parents[2] / "data"
GOLDEN = ("basicblock_r025", "basicblock_r04", "invertedresidual_r04")


def first_largest(score: Tensor, count: int) -> Tensor:
    """Mask of the largest, ties to the lowest index."""
    ranked = sorted(range(len(score)), key=lambda i: (-float(score[i]), i))
    mask = torch.zeros(len(score), dtype=torch.bool)
    mask[ranked[:count]] = True
    return mask


def paper_loop(
    hidden: Tensor, consumer: Callable[[Tensor], Tensor], keep: int, iterations: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Sets, scores and residuals ``V_r`` (before each iteration, and after the last) of hidden ``[N, C, ...]``."""
    spatial = [0, *range(2, hidden.dim())]
    shape = (1, -1, *[1] * (hidden.dim() - 2))
    target = consumer(hidden).detach()
    h = hidden.sum(spatial)
    kept = torch.zeros(hidden.shape[1], dtype=torch.bool)
    sets, scores, residuals = [], [], [target]
    for _ in range(iterations):
        variable = hidden.detach().clone().requires_grad_()
        pruned = consumer(variable * kept.view(shape).to(hidden)) if kept.any() else 0 * consumer(variable)
        whole = consumer(variable)  # the derivative of |V_r|^2 / 2 through the dense consumer
        (gradient,) = torch.autograd.grad((whole * (target - pruned).detach()).sum(), variable)
        y = gradient.sum(spatial)
        candidates = kept | first_largest(y, 2 * keep)
        kept = first_largest(torch.where(candidates, h, -torch.inf), keep)
        sets.append(kept.nonzero().flatten())
        scores.append(y)
        residuals.append((target - consumer(hidden * kept.view(shape).to(hidden))).detach())
    return sets, scores, residuals


def golden(name: str) -> tuple[Tensor, dict[str, Tensor], dict[str, object]]:
    """Hidden activations, the arrays of the file, and what ``ispasp_select`` takes besides."""
    arrays = {key: torch.from_numpy(value) for key, value in np.load(DATA / f"ispasp_{name}.npz").items()}

    def affine(x: Tensor, norm: str) -> Tensor:
        return x * arrays[f"{norm}_weight"].view(-1, 1, 1) + arrays[f"{norm}_bias"].view(-1, 1, 1)

    if name.startswith("basicblock"):
        hidden = F.relu(affine(F.conv2d(arrays["x"], arrays["conv1"], padding=1), "norm1"))
        weight, norm, padding = arrays["conv2"], "norm2", 1
    else:
        hidden = F.relu6(affine(F.conv2d(arrays["x"], arrays["expand"]), "expand_norm"))
        groups = hidden.shape[1]
        hidden = F.conv2d(hidden, arrays["depthwise"], padding=1, groups=groups)
        hidden = F.relu6(affine(hidden, "depthwise_norm"))
        weight, norm, padding = arrays["project"], "project_norm", 0
    arrays["weight"] = weight
    options = {"padding": padding, "scale": arrays[f"{norm}_weight"], "shift": arrays[f"{norm}_bias"]}
    return hidden, arrays, {**options, "count": len(hidden)}
