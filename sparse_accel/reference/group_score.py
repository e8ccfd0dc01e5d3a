"""Plain twin of :mod:`sparse_accel.ops.group_score`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from ._common import Layout, compute_type, grouped_view, squared_norms


@overload
def group_score(
    tensors: Sequence[Tensor], layouts: Sequence[Layout], kind: str = "l2", *, coupled: Literal[False] = False
) -> list[Tensor]: ...
@overload
def group_score(
    tensors: Sequence[Tensor], layouts: Sequence[Layout], kind: str = "l2", *, coupled: Literal[True]
) -> Tensor: ...
def group_score(
    tensors: Sequence[Tensor], layouts: Sequence[Layout], kind: str = "l2", *, coupled: bool = False
) -> list[Tensor] | Tensor:
    """Twin of :func:`sparse_accel.ops.group_score`."""
    parts = []
    for tensor, layout in zip(tensors, layouts, strict=True):
        x = grouped_view(tensor, layout).to(compute_type(tensor.dtype))
        if x.numel() == 0:
            part = x.new_zeros(layout[3] * layout[1])
        elif kind in ("l2", "l2sq"):
            part = squared_norms(x).flatten()
        elif kind == "l1":
            part = x.abs().sum((1, 3)).flatten()
        elif kind == "sum":
            part = x.sum((1, 3)).flatten()
        else:
            part = x.abs().amax((1, 3)).flatten()
        parts.append(part)
    if coupled:
        stacked = torch.stack(parts)
        parts = [stacked.amax(0) if kind == "amax" else stacked.sum(0)]
    scores = [part.sqrt() if kind == "l2" else part for part in parts]
    return scores[0] if coupled else scores
