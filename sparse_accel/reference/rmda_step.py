"""Plain twin of :mod:`sparse_accel.ops.rmda_step`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._common import Layout, compute_type, grouped_view, shrinkage, size_of, squared_norms


def rmda_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    points: Sequence[Tensor],
    anchors: Sequence[Tensor],
    steps: Sequence[Tensor],
    alphas: Sequence[Tensor],
    layouts: Sequence[Layout],
    *,
    prox: str,
    strengths: Sequence[float],
    lr: float | Tensor,
    momentum: float,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Twin of :func:`sparse_accel.ops.rmda_step_` (Huang & Lee 2022, Algorithm 1; X instead of V, see there)."""
    for i, param in enumerate(params):
        dtype = compute_type(param.dtype)
        device = param.device
        keep = None if found_inf is None else (found_inf == 0).to(device)
        beta = (steps[i].double() + 1).sqrt()
        rate = torch.as_tensor(lr, dtype=torch.float64, device=steps[i].device)
        alpha = alphas[i] + rate * beta
        decay = (steps[i].double().sqrt() / beta).to(device, dtype)
        grad = grads[i].to(dtype)
        if grad_scale is not None:
            grad = grad / grad_scale.to(device, dtype)
        point = anchors[i] + decay * (points[i] - anchors[i]) - (-rate if maximize else rate).to(device, dtype) * grad
        x = grouped_view(point, layouts[i])
        tau = (alpha / beta * strengths[i]).to(device, dtype)
        scale = shrinkage(squared_norms(x), tau, size_of(layouts[i]), prox)
        x = torch.where(scale == 0, torch.zeros_like(x), x * scale)
        view = grouped_view(param, layouts[i])
        new = (1 - momentum) * view.to(dtype) + momentum * x if momentum != 1 else x
        if keep is None:
            view.copy_(new)
            points[i].copy_(point)
            steps[i] += 1
            alphas[i].copy_(alpha)
        else:
            view.copy_(torch.where(keep, new.to(view.dtype), view))
            points[i].copy_(torch.where(keep, point, points[i]))
            steps[i] += keep.to(steps[i])
            alphas[i].copy_(torch.where(keep.to(alpha.device), alpha, alphas[i]))
