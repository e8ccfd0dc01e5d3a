"""Plain-PyTorch twins of every op, written from the formulas: what the tests hold the kernels against, and what
runs on devices that have no kernels. Signatures are those of :mod:`sparse_accel.ops`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

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


def _size(layout: Layout) -> int:
    return layout[0] * layout[2]


def _squares(view: Tensor) -> Tensor:
    """Squared norms ``[blocks, 1, groups, 1]``."""
    return view.square().sum((1, 3), keepdim=True)


def _scale(squares: Tensor, tau: Tensor | float, size: int, prox: str) -> Tensor:
    tau = torch.as_tensor(tau, dtype=squares.dtype, device=squares.device)
    if prox == "hard":
        scale = torch.where(squares <= 2 * tau * size, 0.0, 1.0).to(squares.dtype)
    else:
        norms, threshold = squares.sqrt(), tau * size**0.5
        scale = torch.where(norms <= threshold, torch.zeros_like(norms), 1 - threshold / norms)
    return torch.where(tau == 0, torch.ones_like(scale), scale)


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
            part = _squares(x).flatten()
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


def group_topk(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """Twin of :func:`sparse_accel.ops.group_topk` (on a list)."""
    flat = torch.cat([score.flatten() for score in scores])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[torch.argsort(flat, descending=True, stable=True)[:k]] = True
    return [m.view_as(s) for m, s in zip(mask.split([s.numel() for s in scores]), scores, strict=True)]


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
        squares, size = _squares(x), _size(layout)
        scale = _scale(squares, tau, size, prox)
        view.copy_(torch.where(scale == 0, torch.zeros_like(x), x * scale))
        norms = (squares.double().sqrt() * scale.double()) if squares.numel() else squares.double()
        values.append(size * (norms != 0).sum().double() if prox == "hard" else size**0.5 * norms.sum())
    if not return_value:
        return None
    return torch.stack(values) if values else torch.zeros(0, dtype=torch.float64)


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
        scale = _scale(_squares(x), tau, _size(layouts[i]), prox)
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
