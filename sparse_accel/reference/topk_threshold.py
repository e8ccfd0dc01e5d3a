"""Plain twin of :mod:`sparse_accel.ops.topk_threshold`: by sorting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._common import compute_type, grouped_view


def keep_largest(scores: Tensor, k: int) -> Tensor:
    """The mask of the k largest of each row; equal ones by index, lowest first."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order[..., :k], True)


def keep_blocks(scores: Tensor, n: int, m: int) -> Tensor:
    """The mask of the n largest of every m neighbours in each row; a shorter last block keeps min(n, its length)."""
    *lead, columns = scores.shape
    filler = scores.new_full((*lead, -columns % m), -torch.inf)  # of equal ones the lowest index wins: never these
    blocks = torch.cat([scores, filler], -1).view(*lead, -1, m)
    return keep_largest(blocks, n).view(*lead, -1)[..., :columns]


def _scores(x: Tensor, scores: Tensor | None, scale: Tensor | None) -> Tensor:
    if scores is not None:
        return scores
    magnitudes = x.to(compute_type(x.dtype)).abs()
    return magnitudes if scale is None else magnitudes * scale.to(magnitudes.dtype)


def topk_threshold_(
    x: Tensor, scores: Tensor | None, k: Sequence[int], by: str, layout: Sequence[int], scale: Tensor | None
) -> Tensor:
    """Twin of :func:`sparse_accel.ops.topk_threshold_`."""
    given = scores is not None and scores.shape != x.shape  # one score for each group
    element = scores if scores is not None and given else _scores(x, scores, scale)
    mask = torch.empty_like(x, dtype=torch.bool)
    if x.device.type != "meta" and bool(element.isnan().any()):
        raise ValueError("topk_threshold_: scores: expected numbers that can be ordered, got NaN")
    if x.numel() == 0:
        return mask
    if len(k) == 2:
        mask.copy_(keep_blocks(element.reshape(-1, element.shape[-1] if element.dim() else 1), *k).view(x.shape))
    elif by in ("tensor", "row"):
        rows = element.reshape(len(x) if by == "row" and x.dim() > 1 else 1, -1)
        mask.copy_(keep_largest(rows, k[0]).view(x.shape))
    else:
        outer, groups, inner, blocks = layout
        view = grouped_view(mask, (outer, groups, inner, blocks))
        ordered = element if given else torch.empty_like(x, dtype=element.dtype).copy_(element)
        parts = ordered if given else grouped_view(ordered, (outer, groups, inner, blocks))
        if by == "group":
            per_group = parts.flatten() if given else parts.to(compute_type(parts.dtype)).norm(dim=(1, 3)).flatten()
            view.copy_(keep_largest(per_group, k[0]).view(blocks, 1, groups, 1).expand(view.shape))
        else:
            own = parts.permute(0, 2, 1, 3)
            kept = keep_largest(own.reshape(blocks, groups, -1), k[0])
            view.copy_(kept.view(own.shape).permute(0, 2, 1, 3))
    x.masked_fill_(~mask, 0)
    return mask
