"""The group proximal operators in plain tensor ops that autograd can run through, for the optimizers' loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_accel.groups import GroupLayout
from sparse_accel.sharding import all_sums


def _grouped_view(tensor: Tensor, layout: GroupLayout) -> Tensor:
    """The memory of a dense tensor as ``[blocks, outer, groups, inner]``."""
    outer, groups, inner, blocks = layout
    shape = (blocks, outer, groups, inner)
    return tensor.as_strided(shape, (outer * groups * inner, groups * inner, inner, 1), tensor.storage_offset())


def proximal_point(x: Tensor, layout: GroupLayout, threshold: Tensor, prox: str) -> Tensor:
    """The proximal operator at a dense tensor, as a new tensor of the same strides; ``threshold`` is ``[]``."""
    view = _grouped_view(x, layout)
    squares = view.square().sum((1, 3), keepdim=True)
    return _scaled(x, layout, _scale(squares, layout.group_size, threshold, prox))


def proximal_parts(
    xs: Sequence[Tensor],
    layouts: Sequence[GroupLayout],
    thresholds: Sequence[Tensor],
    prox: str,
    sizes: Sequence[int],
    processes: Sequence[Any],
) -> list[Tensor]:
    """As :func:`proximal_point`, of tensors whose groups lie across processes: one all-reduce, of their squares.

    Args:
        xs: this process's parts.
        layouts: of their memory.
        thresholds: ``[]`` each.
        prox: ``"soft"`` or ``"hard"``.
        sizes: elements of a whole group, of each tensor.
        processes: groups of processes to sum over.
    """
    squares = all_sums(
        [_grouped_view(x, layout).square().sum((1, 3), keepdim=True) for x, layout in zip(xs, layouts, strict=True)],
        processes,
    )
    return [
        _scaled(x, layout, _scale(total, size, threshold, prox))
        for x, layout, total, size, threshold in zip(xs, layouts, squares, sizes, thresholds, strict=True)
    ]


def _scaled(x: Tensor, layout: GroupLayout, scale: Tensor) -> Tensor:
    view = _grouped_view(x, layout)
    return torch.where(scale == 0, 0.0, view * scale).as_strided(x.size(), x.stride())


def _scale(squares: Tensor, size: int, threshold: Tensor, prox: str) -> Tensor:
    """The factor of each group, ``[blocks, 1, groups, 1]``, from the squares of its norm and its number of elements.

    ``"soft"``: max(0, 1 - threshold * sqrt(|g|) / norm); ``"hard"``: 1 where norm^2 > 2 * threshold * |g|. No
    gradient is NaN at zero groups.
    """
    if prox == "hard":
        zero = squares <= 2 * threshold * size  # not of a NaN, which has to show
        return torch.where(zero & (threshold != 0), 0.0, torch.ones_like(squares))
    bound = threshold * size**0.5
    zero = squares.sqrt() <= bound
    norms = torch.where(zero, torch.ones_like(squares), squares).sqrt()  # away from the root's pole at 0
    scale = torch.where(zero, torch.zeros_like(norms), 1 - bound / norms)
    return torch.where(threshold == 0, torch.ones_like(scale), scale)


def metric_point(x: Tensor, metric: Tensor, layout: GroupLayout, threshold: Tensor, prox: str) -> Tensor:
    """argmin over w of ``1/2 <w - x, P (w - x)> + threshold psi(w)``, as a new tensor of the strides of ``x``.

    ``"soft"``: psi is the sum of sqrt(|g|) ||w_g||, solved by one scalar root per group (see
    :mod:`sparse_accel.ops.metric_step`); ``"hard"``: of |g| [w_g != 0]. Autograd runs through both.

    Args:
        x: dense.
        metric: P > 0, strides of ``x``.
        layout: of the memory of both.
        threshold: ``[]``.
        prox: ``"soft"`` or ``"hard"``.
    """
    view, weight = _grouped_view(x, layout), _grouped_view(metric, layout)
    size = view.shape[1] * view.shape[3]
    if view.numel() == 0:
        return x.clone()
    if prox == "hard":
        zero = (weight * view.square()).sum((1, 3), keepdim=True) <= 2 * threshold * size
        shrunk = torch.where(zero, 0.0, view)
    elif size == 1:
        bound = torch.where(threshold == 0, torch.zeros_like(weight), threshold / weight)
        shrunk = torch.where(view.abs() <= bound, 0.0, view - view.sign() * bound)
    else:
        shrunk = _shrunk_in_metric(view, weight, threshold * size**0.5)
    return torch.where(threshold == 0, view, shrunk).as_strided(x.size(), x.stride())


def _shrunk_in_metric(view: Tensor, weight: Tensor, threshold: Tensor) -> Tensor:
    """The minimizer's groups, ``n P x / (n P + threshold)`` with n the norm of each. In double, where there is one."""
    wide = torch.float32 if view.device.type == "mps" else torch.float64
    x, metric, tau = view.to(wide), weight.to(wide), threshold.to(wide)
    q = metric * x
    with torch.no_grad():
        norms = _norms_in_metric(q, metric, tau)
    zero = norms == 0  # not of a NaN, which has to show
    n = torch.where(zero, torch.ones_like(norms), norms)
    if torch.is_grad_enabled():  # one more step of Newton, with the right derivative: the root's is implicit
        below = n * metric + tau
        squares = (q / below).square()
        total = squares.sum((1, 3), keepdim=True)
        slope = (squares * metric / below).sum((1, 3), keepdim=True).detach()
        slope = torch.where(slope > 0, slope, torch.ones_like(slope))
        n = n + torch.where(zero, torch.zeros_like(total), total - total.detach()) / (2 * slope)
    return torch.where(zero, torch.zeros_like(x), x * (n * metric / (n * metric + tau))).to(view.dtype)


_NEWTON_STEPS = 60


def _norms_in_metric(q: Tensor, metric: Tensor, tau: Tensor) -> Tensor:
    """The roots n ``[blocks, 1, groups, 1]`` of ``sum q_i^2 / (n P_i + tau)^2 = 1``; 0 where ||q|| <= tau.

    The inverse square root of the sum is concave in n: Newton on it climbs to the root from the left. All is scaled by
    powers of two before it is squared.
    """
    eps = torch.finfo(q.dtype).eps
    q_scale, p_scale = (_power_of_two(values.abs().amax((1, 3), keepdim=True)) for values in (q, metric))
    q, metric, tau = q / q_scale, metric / p_scale, tau / q_scale
    squares = q.square()
    total = squares.sum((1, 3), keepdim=True)
    length = total.sqrt()
    zero = length <= tau
    n = (length - tau) * total / (squares * metric).sum((1, 3), keepdim=True)  # the step from n = 0
    for _ in range(_NEWTON_STEPS):
        below = n * metric + tau
        squares = (q / below).square()
        total = squares.sum((1, 3), keepdim=True)
        step = total * (total.sqrt() - 1) / (squares * metric / below).sum((1, 3), keepdim=True)
        n = n + torch.where(zero, torch.zeros_like(step), step.clamp(min=0))
        if n.is_cpu and bool((zero | ~(step > 2 * eps * n)).all()):  # a look at the device would synchronize
            break
    return torch.where(zero, torch.zeros_like(n), n) * (q_scale / p_scale)


def _power_of_two(values: Tensor) -> Tensor:
    """A power of two near each number, so that a division by it is exact."""
    most = 100 if values.dtype == torch.float32 else 1000
    return torch.exp2(values.frexp().exponent.to(values.dtype).clamp(-most, most))
