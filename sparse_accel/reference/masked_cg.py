"""Plain twin of :mod:`sparse_accel.ops.masked_cg`."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_cg(w: Tensor, mask: Tensor, h: Tensor, iters: int, start: Tensor | None) -> Tensor:
    """Twin of :func:`sparse_accel.ops.masked_cg`."""
    zero = w.new_zeros(())
    x = torch.where(mask, w if start is None else start, zero)
    diagonal, rounding = h.diagonal(), torch.finfo(w.dtype).eps
    inverse = torch.where(diagonal > 0, 1 / diagonal, zero)
    r = torch.where(mask, (w - x) @ h, zero)
    p = r * inverse
    rz = (r * p).sum(1, keepdim=True)
    done = 64 * rounding**2 * (diagonal * w * w).sum(1, keepdim=True)
    for _ in range(iters):
        q = p @ h
        curvature, plain = (p * q).sum(1, keepdim=True), (diagonal * p * p).sum(1, keepdim=True)
        stopped = (rz <= done) | (curvature <= 4 * rounding * plain)
        length = torch.where(stopped, zero, rz / curvature)
        x = x + length * p
        r = torch.where(mask, r - length * q, zero)
        z = r * inverse
        old, rz = rz, (r * z).sum(1, keepdim=True)
        p = torch.where(stopped, zero, z + rz / old * p)
        rz = torch.where(stopped, zero, rz)
    return x
