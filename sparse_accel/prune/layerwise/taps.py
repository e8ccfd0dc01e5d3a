"""Convolutions for n:m along input channels: columns (c, kh, kw) in the order (kh, kw, c), every tap a run of its own.

Sparse tensor cores multiply a convolution tap by tap, with blocks of m input channels: the order of channels_last
memory. Where m does not divide the channels, each tap is filled up with inputs that are always zero and weigh nothing,
so that no block reaches into the next tap.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def tap_order(channels: int, taps: int, m: int) -> Tensor:
    """For every column in the new order the old one, int64 ``[taps * ceil(channels / m) * m]``; −1: a filler.

    Example:
        >>> tap_order(channels=3, taps=2, m=2).tolist()
        [0, 2, 4, -1, 1, 3, 5, -1]
    """
    columns = torch.arange(channels * taps, device="cpu").view(channels, taps).T
    return F.pad(columns, (0, -channels % m), value=-1).flatten()


def into_order(matrix: Tensor, order: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The matrix with the columns (and rows) of some dimensions in an order; zeros in the fillers' places."""
    order = order.to(matrix.device)
    fillers = order < 0
    for dim in dims:
        matrix = matrix.index_select(dim, order.clamp(min=0))
        if bool(fillers.any()):
            matrix.index_fill_(dim, fillers.nonzero().flatten(), 0)
    return matrix


def out_of_order(matrix: Tensor, order: Tensor, columns: int) -> Tensor:
    """The inverse of :func:`into_order` for ``[R, columns]``."""
    order = order.to(matrix.device)
    real = (order >= 0).nonzero().flatten()
    back = torch.empty(columns, dtype=torch.int64, device=matrix.device)
    back[order[real]] = real
    return matrix.index_select(1, back)
