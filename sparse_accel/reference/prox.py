"""Plain twin of :mod:`sparse_accel.ops.prox`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._common import Layout, compute_type, grouped_view, shrinkage, size_of, squared_norms


def prox_(
    tensors: Sequence[Tensor],
    layouts: Sequence[Layout],
    thresholds: Sequence[float],
    *,
    prox: str = "soft",
    return_value: bool = False,
) -> Tensor | None:
    """Twin of :func:`sparse_accel.ops.prox_`."""
    values = []
    for tensor, layout, tau in zip(tensors, layouts, thresholds, strict=True):
        view = grouped_view(tensor, layout)
        x = view.to(compute_type(tensor.dtype))
        squares, size = squared_norms(x), size_of(layout)
        scale = shrinkage(squares, tau, size, prox)
        view.copy_(torch.where(scale == 0, torch.zeros_like(x), x * scale))
        norms = (squares.double().sqrt() * scale.double()) if squares.numel() else squares.double()
        values.append(size * (norms != 0).sum().double() if prox == "hard" else size**0.5 * norms.sum())
    if not return_value:
        return None
    return torch.stack(values) if values else torch.zeros(0, dtype=torch.float64, device="cpu")
