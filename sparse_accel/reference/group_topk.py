"""Plain twin of :mod:`sparse_accel.ops.group_topk`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def group_topk(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """Twin of :func:`sparse_accel.ops.group_topk` (on a list)."""
    flat = torch.cat([score.flatten() for score in scores])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[torch.argsort(flat, descending=True, stable=True)[:k]] = True
    return [m.view_as(s) for m, s in zip(mask.split([s.numel() for s in scores]), scores, strict=True)]
