"""Which coordinates to give up: greedy backward elimination by the damage that each removal does.

With H the curvature and v the minimizer of the quadratic model, giving up coordinate i and letting all others readjust
raises the model by ``v_i^2 / (2 [H^-1]_ii)`` (Hassibi and Stork, 1993). After each removal v and H^-1 are those of the
remaining coordinates, so the damages add up exactly. Ties: the highest index goes first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_accel.ops import topk_threshold_

from .objective import take_square

_BLOCK = 64  # removals between two foldings of the pending updates into the inverse


def largest(scores: Tensor, k: int) -> Tensor:
    """The k largest of each row of ``scores [B, d]``, ties to the lowest index: int64 ``[B, k]``, ascending."""
    kept = topk_threshold_(scores.clone(), scores, k, by="row")
    return kept.nonzero()[:, 1].view(len(scores), k)


def eliminate(inverse: Tensor, v: Tensor, k: int) -> Tensor:
    """The k coordinates left by exact greedy elimination.

    The inverse is updated lazily: a removal costs one column, and every 64 removals their outer products are folded in
    by one matrix product that also drops the removed rows.

    Args:
        inverse: ``[B, d, d]``, of positive definite curvature.
        v: the Newton point ``[B, d]``.
        k: how many stay.

    Returns:
        int64 ``[B, k]``, ascending.
    """
    count, size = v.shape
    batch = torch.arange(count, device=v.device)
    # Reversed, so that the first of equal damages is the highest index.
    alive = torch.arange(size - 1, -1, -1, device=v.device).expand(count, -1)
    inverse, v = inverse.flip(1, 2), v.flip(1)
    while alive.shape[1] > k:
        left = alive.shape[1]
        block = min(_BLOCK, left - k)
        updates = v.new_zeros(count, block, left)  # H^-1 of now is inverse - updates^T updates
        diagonal = inverse.diagonal(dim1=1, dim2=2).clone()
        gone = torch.zeros_like(v, dtype=torch.bool)
        for j in range(block):
            damage = (v.square() / diagonal).masked_fill_(gone, torch.inf)
            pick = damage.argmin(1)
            pending = updates[:, :j]
            column = inverse[batch, pick] - (pending[batch, :, pick][:, None] @ pending)[:, 0]
            pivot = diagonal[batch, pick].sqrt()[:, None]
            update = column / pivot
            v = v - update * (v[batch, pick][:, None] / pivot)
            # Rounding must not make a variance zero or negative.
            diagonal = torch.maximum(diagonal - update.square(), diagonal * torch.finfo(v.dtype).eps)
            updates[:, j] = update
            gone[batch, pick] = True
        places = _left(gone, left - block)
        alive, v, updates = alive.gather(1, places), v.gather(1, places), _columns(updates, places)
        inverse = take_square(inverse, places) - updates.mT @ updates
    return alive.flip(1)


def eliminate_low_rank(factors: Tensor, v: Tensor, k: int) -> Tensor:
    """The same where the curvature is ``I + G^T G`` with few rows G: O(m d) a removal, and no matrix ``[d, d]``.

    Args:
        factors: G, ``[B, m, d]``.
        v: the Newton point ``[B, d]``.
        k: how many stay.

    Returns:
        int64 ``[B, k]``, ascending.
    """
    count, size = v.shape
    batch = torch.arange(count, device=v.device)
    alive = torch.arange(size - 1, -1, -1, device=v.device).expand(count, -1)
    factors, v = factors.flip(2), v.flip(1)
    while alive.shape[1] > k:
        left = alive.shape[1]
        block = min(_BLOCK, left - k)
        small = small_inverse(factors)  # [B, m, m]: (I + G G^T)^-1 of the remaining columns
        diagonal = 1 - (factors * (small @ factors)).sum(1)
        gone = torch.zeros_like(v, dtype=torch.bool)
        for _ in range(block):
            diagonal = diagonal.clamp(min=torch.finfo(v.dtype).eps)
            pick = (v.square() / diagonal).masked_fill_(gone, torch.inf).argmin(1)
            solved = (small @ factors[batch, :, pick][..., None])[..., 0]  # [B, m]
            column = -(solved[:, None] @ factors)[:, 0]
            column[batch, pick] += 1
            pivot = diagonal[batch, pick][:, None]
            v = v - column * (v[batch, pick][:, None] / pivot)
            diagonal = diagonal - column.square() / pivot
            small = small + solved[:, :, None] * solved[:, None] / pivot[..., None]
            gone[batch, pick] = True
            factors[batch, :, pick] = 0  # it no longer takes part
        places = _left(gone, left - block)
        alive, v, factors = alive.gather(1, places), v.gather(1, places), _columns(factors, places)
    return alive.flip(1)


def small_inverse(factors: Tensor) -> Tensor:
    """``(I + G G^T)^-1``: ``[B, m, m]``."""
    eye = torch.eye(factors.shape[1], dtype=factors.dtype, device=factors.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(eye + factors @ factors.mT))


def _left(gone: Tensor, left: int) -> Tensor:
    """The places that remain: ``[B, left]``."""
    return (~gone).nonzero()[:, 1].view(len(gone), left)


def _columns(value: Tensor, places: Tensor) -> Tensor:
    """Columns ``places [B, n]`` of ``value [B, m, d]``."""
    return value.gather(2, places[:, None].expand(-1, value.shape[1], -1))
