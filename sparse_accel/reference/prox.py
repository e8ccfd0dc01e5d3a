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


def prox_sgd_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    steps: Sequence[Tensor],
    layouts: Sequence[Layout],
    *,
    prox: str,
    strengths: Sequence[float],
    lr: float | Tensor,
    rho: float,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Twin of :func:`sparse_accel.ops.prox_sgd_step_` (Yang et al. 2020)."""
    for i, param in enumerate(params):
        dtype, device = compute_type(param.dtype), param.device
        keep = None if found_inf is None else (found_inf == 0).to(device)
        rate = torch.as_tensor(lr, dtype=torch.float64, device=device)
        grad = grads[i].to(dtype)
        if grad_scale is not None:
            grad = grad / grad_scale.to(device, dtype)
        buffer = (1 - rho) * buffers[i] + (-rho if maximize else rho) * grad
        x = grouped_view(param.to(dtype) - rate.to(dtype) * buffer, layouts[i])
        scale = shrinkage(squared_norms(x), (rate * strengths[i]).to(dtype), size_of(layouts[i]), prox)
        view, new = grouped_view(param, layouts[i]), torch.where(scale == 0, torch.zeros_like(x), x * scale)
        if keep is None:
            view.copy_(new)
            buffers[i].copy_(buffer)
            steps[i] += 1
        else:
            view.copy_(torch.where(keep, new.to(view.dtype), view))
            buffers[i].copy_(torch.where(keep, buffer, buffers[i]))
            steps[i] += keep.to(steps[i])
