"""Plain twins of :mod:`sparse_accel.ops.metric_step`: steps that end in a proximal operator in a diagonal metric."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._common import Layout, compute_type, grouped_view, size_of

NEWTON_STEPS = 60


def metric_prox(x: Tensor, metric: Tensor, layout: Layout, tau: Tensor, prox: str) -> Tensor:
    """argmin over w of ``1/2 sum_i P_i (w_i - x_i)^2 + tau psi(w)``, as ``[blocks, outer, groups, inner]``.

    Args:
        x: dense.
        metric: P > 0, strides of ``x``.
        layout: of the memory of both.
        tau: ``[]``, of the compute type.
        prox: ``"soft"``, psi the sum of sqrt(|g|) ||w_g||; ``"hard"``, of |g| [w_g != 0].
    """
    view, weight, size = grouped_view(x, layout), grouped_view(metric, layout), size_of(layout)
    if view.numel() == 0:
        return view
    if prox == "hard":
        keep = ~((weight * view.square()).sum((1, 3), keepdim=True) <= 2 * tau * size) | (tau == 0)
        return torch.where(keep, view, torch.zeros_like(view))
    bound = tau * size**0.5
    if size == 1:
        shrunk = view.sign() * (view.abs() - bound / weight).clamp(min=0)
        return torch.where(tau == 0, view, torch.where(shrunk == 0, torch.zeros_like(view), shrunk))
    norms = group_norms(view.double(), weight.double(), bound.double())
    moved = norms * weight.double()
    factor = torch.where(norms == 0, torch.zeros_like(moved), moved / (moved + bound.double()))
    shrunk = torch.where(factor == 0, torch.zeros_like(view), (view.double() * factor).to(view.dtype))
    return torch.where(tau == 0, view, shrunk)


def group_norms(x: Tensor, weight: Tensor, tau: Tensor) -> Tensor:
    """The norms ``[blocks, 1, groups, 1]`` of the minimizer's groups, for the threshold ``tau`` of a group.

    With q = P x a group is zero where ||q|| <= tau; else n = ||w_g|| solves ``sum_i q_i^2 / (n P_i + tau)^2 = 1``. The
    inverse square root of that sum is a concave function of n: Newton on it climbs from a start left of the root,
    (||q|| - tau) / max P. Scaled by powers of two, so that squares neither overflow nor vanish. Double throughout.
    """
    q = weight * x
    q_scale = torch.exp2(q.abs().amax((1, 3), keepdim=True).frexp().exponent.double().clamp(-1000, 1000))
    p_scale = torch.exp2(weight.amax((1, 3), keepdim=True).frexp().exponent.double().clamp(-1000, 1000))
    q, weight, tau = q / q_scale, weight / p_scale, tau / q_scale
    length = q.square().sum((1, 3), keepdim=True).sqrt()
    zero = length <= tau
    n = (length - tau) / weight.amax((1, 3), keepdim=True)
    for _ in range(NEWTON_STEPS):
        below = n * weight + tau
        squares = (q / below).square()
        total = squares.sum((1, 3), keepdim=True)
        slope = (squares * weight / below).sum((1, 3), keepdim=True)
        step = total * (total.sqrt() - 1) / slope
        n = n + torch.where(zero, 0.0, step.clamp(min=0))
        if n.is_cpu and bool((zero | ~(step > 4e-16 * n)).all()):
            break
    return torch.where(zero, 0.0, n) * q_scale / p_scale


def ramda_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    duals: Sequence[Tensor],
    squares: Sequence[Tensor],
    anchors: Sequence[Tensor],
    steps: Sequence[Tensor],
    alphas: Sequence[Tensor],
    layouts: Sequence[Layout],
    *,
    prox: str,
    strengths: Sequence[float],
    lr: float | Tensor,
    momentum: float,
    eps: float,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Twin of :func:`sparse_accel.ops.ramda_step_` (Huang & Lee 2024, Algorithm 1)."""
    for i, param in enumerate(params):
        dtype, device = compute_type(param.dtype), param.device
        keep = None if found_inf is None else (found_inf == 0).to(device).reshape(())
        grad = _scaled(grads[i], dtype, grad_scale)
        rate = torch.as_tensor(lr, dtype=torch.float64, device=steps[i].device).reshape(())
        rate = rate * (steps[i].double() + 1).sqrt()
        alpha = alphas[i] + rate
        size = rate.to(device, dtype)
        dual = duals[i] + (-size if maximize else size) * grad
        square = squares[i] + size * grad * grad
        metric = square.double().pow(1 / 3).to(dtype) + eps
        tau = (alpha * strengths[i]).to(device, dtype)
        x = metric_prox(anchors[i] - dual / metric, metric, layouts[i], tau, prox)
        view = grouped_view(param, layouts[i])
        _write(view, (1 - momentum) * view.to(dtype) + momentum * x if momentum != 1 else x, keep)
        for old, new in ((duals[i], dual), (squares[i], square), (steps[i], steps[i] + 1), (alphas[i], alpha)):
            _write(old, new, keep)


def prox_adamw_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    layouts: Sequence[Layout],
    *,
    prox: str,
    strengths: Sequence[float],
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Twin of :func:`sparse_accel.ops.prox_adamw_step_` (Loshchilov & Hutter 2019; Yun, Lozano & Yang 2021)."""
    for i, param in enumerate(params):
        dtype, device = compute_type(param.dtype), param.device
        keep = None if found_inf is None else (found_inf == 0).to(device).reshape(())
        grad = _scaled(grads[i], dtype, grad_scale)
        grad = -grad if maximize else grad
        rate = torch.as_tensor(lr, dtype=torch.float64, device=steps[i].device).reshape(())
        step = steps[i].double() + 1
        size = (rate / (1 - beta1**step)).to(device, dtype)
        root = (1 - beta2**step).sqrt().to(device, dtype)
        exp_avg = exp_avgs[i] + (1 - beta1) * (grad - exp_avgs[i])
        exp_avg_sq = beta2 * exp_avg_sqs[i] + (1 - beta2) * grad * grad
        metric = exp_avg_sq.sqrt() / root + eps
        x = (1 - rate * weight_decay).to(device, dtype) * param.to(dtype) - size * exp_avg / metric
        tau = (rate * strengths[i]).to(device, dtype)
        view = grouped_view(param, layouts[i])
        _write(view, metric_prox(x, metric, layouts[i], tau, prox), keep)
        for old, new in ((exp_avgs[i], exp_avg), (exp_avg_sqs[i], exp_avg_sq), (steps[i], step)):
            _write(old, new, keep)


def _scaled(grad: Tensor, dtype: torch.dtype, scale: Tensor | None) -> Tensor:
    return grad.to(dtype) if scale is None else grad.to(dtype) / scale.to(grad.device, dtype)


def _write(old: Tensor, new: Tensor, keep: Tensor | None) -> None:
    old.copy_(new if keep is None else torch.where(keep.to(old.device), new.to(old.dtype), old))
