"""What the twins share: the view of a tensor's groups, and the factor by which a penalty shrinks them."""

from __future__ import annotations

import torch
from torch import Tensor

Layout = tuple[int, int, int, int]  # outer, groups, inner, blocks


def compute_type(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums are taken: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def grouped_view(tensor: Tensor, layout: Layout) -> Tensor:
    """The memory of a dense tensor as ``[blocks, outer, groups, inner]``."""
    outer, groups, inner, blocks = layout
    shape = (blocks, outer, groups, inner)
    strides = (outer * groups * inner, groups * inner, inner, 1)
    return torch.as_strided(tensor, shape, strides)


def size_of(layout: Layout) -> int:
    """Elements of each group."""
    return layout[0] * layout[2]


def squared_norms(view: Tensor) -> Tensor:
    """Squared norms ``[blocks, 1, groups, 1]``."""
    return view.square().sum((1, 3), keepdim=True)


def shrinkage(squares: Tensor, tau: Tensor | float, size: int, prox: str) -> Tensor:
    """The factor of each group, as ``squares``, under the soft or the hard threshold ``tau``."""
    tau = torch.as_tensor(tau, dtype=squares.dtype, device=squares.device)
    if prox == "hard":
        scale = torch.where(squares <= 2 * tau * size, 0.0, 1.0).to(squares.dtype)
    else:
        norms, threshold = squares.sqrt(), tau * size**0.5
        scale = torch.where(norms <= threshold, torch.zeros_like(norms), 1 - threshold / norms)
    return torch.where(tau == 0, torch.ones_like(scale), scale)
