"""The group proximal operators in plain tensor ops that autograd can run through, for the optimizers' loops."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_accel.groups import GroupLayout


def _grouped_view(tensor: Tensor, layout: GroupLayout) -> Tensor:
    """The memory of a dense tensor as ``[blocks, outer, groups, inner]``."""
    outer, groups, inner, blocks = layout
    shape = (blocks, outer, groups, inner)
    return tensor.as_strided(shape, (outer * groups * inner, groups * inner, inner, 1), tensor.storage_offset())


def proximal_point(x: Tensor, layout: GroupLayout, threshold: Tensor, prox: str) -> Tensor:
    """The proximal operator at a dense tensor, as a new tensor of the same strides; ``threshold`` is ``[]``."""
    view = _grouped_view(x, layout)
    scale = _scale(view, threshold, prox)
    return torch.where(scale == 0, 0.0, view * scale).as_strided(x.size(), x.stride())


def _scale(view: Tensor, threshold: Tensor, prox: str) -> Tensor:
    """The factor of each group, ``[blocks, 1, groups, 1]``, for a view ``[blocks, outer, groups, inner]``.

    ``"soft"``: max(0, 1 - threshold * sqrt(|g|) / norm); ``"hard"``: 1 where norm^2 > 2 * threshold * |g|. No
    gradient is NaN at zero groups.
    """
    size = view.shape[1] * view.shape[3]
    squares = view.square().sum((1, 3), keepdim=True)
    if prox == "hard":
        zero = squares <= 2 * threshold * size  # not of a NaN, which has to show
        return torch.where(zero & (threshold != 0), 0.0, torch.ones_like(squares))
    bound = threshold * size**0.5
    zero = squares.sqrt() <= bound
    norms = torch.where(zero, torch.ones_like(squares), squares).sqrt()  # away from the root's pole at 0
    scale = torch.where(zero, torch.zeros_like(norms), 1 - bound / norms)
    return torch.where(threshold == 0, torch.ones_like(scale), scale)
