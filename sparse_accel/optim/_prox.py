"""The group proximal operators in plain tensor ops that autograd can run through, for the optimizers' loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_accel.groups import GroupLayout
from sparse_accel.sharding import all_sums


def _grouped_view(tensor: Tensor, layout: GroupLayout) -> Tensor:
    """The memory of a dense tensor as ``[blocks, outer, groups, inner]``."""
    outer, groups, inner, blocks = layout
    shape = (blocks, outer, groups, inner)
    return tensor.as_strided(shape, (outer * groups * inner, groups * inner, inner, 1), tensor.storage_offset())


def proximal_point(x: Tensor, layout: GroupLayout, threshold: Tensor, prox: str) -> Tensor:
    """The proximal operator at a dense tensor, as a new tensor of the same strides; ``threshold`` is ``[]``."""
    view = _grouped_view(x, layout)
    squares = view.square().sum((1, 3), keepdim=True)
    return _scaled(x, layout, _scale(squares, layout.group_size, threshold, prox))


def proximal_parts(
    xs: Sequence[Tensor],
    layouts: Sequence[GroupLayout],
    thresholds: Sequence[Tensor],
    prox: str,
    sizes: Sequence[int],
    processes: Sequence[Any],
) -> list[Tensor]:
    """As :func:`proximal_point`, of tensors whose groups lie across processes: one all-reduce, of their squares.

    Args:
        xs: this process's parts.
        layouts: of their memory.
        thresholds: ``[]`` each.
        prox: ``"soft"`` or ``"hard"``.
        sizes: elements of a whole group, of each tensor.
        processes: groups of processes to sum over.
    """
    squares = all_sums(
        [_grouped_view(x, layout).square().sum((1, 3), keepdim=True) for x, layout in zip(xs, layouts, strict=True)],
        processes,
    )
    return [
        _scaled(x, layout, _scale(total, size, threshold, prox))
        for x, layout, total, size, threshold in zip(xs, layouts, squares, sizes, thresholds, strict=True)
    ]


def _scaled(x: Tensor, layout: GroupLayout, scale: Tensor) -> Tensor:
    view = _grouped_view(x, layout)
    return torch.where(scale == 0, 0.0, view * scale).as_strided(x.size(), x.stride())


def _scale(squares: Tensor, size: int, threshold: Tensor, prox: str) -> Tensor:
    """The factor of each group, ``[blocks, 1, groups, 1]``, from the squares of its norm and its number of elements.

    ``"soft"``: max(0, 1 - threshold * sqrt(|g|) / norm); ``"hard"``: 1 where norm^2 > 2 * threshold * |g|. No
    gradient is NaN at zero groups.
    """
    if prox == "hard":
        zero = squares <= 2 * threshold * size  # not of a NaN, which has to show
        return torch.where(zero & (threshold != 0), 0.0, torch.ones_like(squares))
    bound = threshold * size**0.5
    zero = squares.sqrt() <= bound
    norms = torch.where(zero, torch.ones_like(squares), squares).sqrt()  # away from the root's pole at 0
    scale = torch.where(zero, torch.zeros_like(norms), 1 - bound / norms)
    return torch.where(threshold == 0, torch.ones_like(scale), scale)
