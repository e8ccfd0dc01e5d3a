"""The group proximal operators in plain tensor ops that autograd can run through, for the optimizers' loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_accel.groups import GroupLayout

from .across import Across


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
    xs: Sequence[Tensor], layouts: Sequence[GroupLayout], thresholds: Sequence[Tensor], prox: str, across: Across
) -> list[Tensor]:
    """As :func:`proximal_point`, of tensors whose groups lie across tensors or processes: one all-reduce, of squares.

    Args:
        xs: this process's parts.
        layouts: of their memory.
        thresholds: ``[]`` each.
        prox: ``"soft"`` or ``"hard"``.
        across: where the groups lie.
    """
    squares, _ = across.sums([_row_sums(_grouped_view(x, lay).square()) for x, lay in zip(xs, layouts, strict=True)])
    found = []
    for x, layout, total, size, threshold in zip(xs, layouts, squares, across.sizes, thresholds, strict=True):
        sizes = _of_rows(size, layout)
        scale = _scale(_of_rows(total, layout), sizes, threshold, prox)
        if isinstance(sizes, Tensor):
            scale = torch.where(sizes == 0, 1.0, scale)
        found.append(_scaled(x, layout, scale.to(x.dtype)))
    return found


def _row_sums(view: Tensor) -> Tensor:
    """``[rows, 1]`` of ``[blocks, outer, rows of a block, inner]``."""
    return view.sum((1, 3)).reshape(-1, 1)


def _row_tops(view: Tensor) -> Tensor:
    """As :func:`_row_sums`: the largest; 0 of nothing."""
    rows = view.shape[0] * view.shape[2]
    return view.amax((1, 3)).reshape(-1, 1) if view.numel() else view.new_zeros(rows, 1)


def _of_rows(numbers: Any, layout: GroupLayout) -> Any:
    """A number for each row as ``[blocks, 1, rows of a block, 1]``; one for all stays."""
    return numbers.reshape(layout.blocks, 1, layout.groups, 1) if isinstance(numbers, Tensor) else numbers


def _scaled(x: Tensor, layout: GroupLayout, scale: Tensor) -> Tensor:
    view = _grouped_view(x, layout)
    return torch.where(scale == 0, 0.0, view * scale).as_strided(x.size(), x.stride())


def _scale(squares: Tensor, size: Any, threshold: Tensor, prox: str) -> Tensor:
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


@torch.no_grad()
def metric_parts(
    xs: Sequence[Tensor],
    metrics: Sequence[Tensor],
    layouts: Sequence[GroupLayout],
    thresholds: Sequence[Tensor],
    prox: str,
    across: Across,
) -> list[Tensor]:
    """As :func:`metric_point`, of tensors whose groups lie across tensors or processes.

    The scalar root of each group is found by all processes alike, on sums over its rows: every step of Newton is one
    all-reduce of two numbers for each group, of all tensors together, some four to ten of them. The host waits for them
    to see that no group moves any more. No autograd.

    Args:
        xs: this process's parts, dense.
        metrics: P > 0, as ``xs``.
        layouts: of the memory of both.
        thresholds: ``[]`` each.
        prox: ``"soft"`` or ``"hard"``.
        across: where the groups lie.
    """
    rows = [_MetricRows(*one) for one in zip(xs, metrics, layouts, across.sizes, thresholds, strict=True)]
    if prox == "hard":
        energies, _ = across.sums([one.energy() for one in rows])
        return [one.kept(energy) for one, energy in zip(rows, energies, strict=True)]
    for one, tops in zip(rows, across.largest([one.tops() for one in rows]), strict=True):
        one.scale_by(tops)
    moving = xs[0].new_ones(1)
    for _ in range(_NEWTON_STEPS + 1):
        found, moving_anywhere = across.sums([one.terms() for one in rows], moving)
        if moving_anywhere is not None and not bool(moving_anywhere):
            break
        moved = [one.climb(own) for one, own in zip(rows, found, strict=True)]
        moving = torch.stack(moved).any().to(xs[0].dtype).reshape(1)
    return [one.shrunk() for one in rows]


class _MetricRows:
    """The rows of one tensor on their way to the minimizer; x and P are widened anew in each step, not held so."""

    def __init__(self, x: Tensor, metric: Tensor, layout: GroupLayout, size: Any, threshold: Tensor) -> None:
        self._x, self._metric, self._layout = x, metric, layout
        self._wide = torch.float32 if x.device.type == "mps" else torch.float64
        sizes = torch.as_tensor(size, dtype=self._wide, device=x.device).reshape(-1)
        self._sizes = sizes.expand(layout.num_groups)
        self._threshold = threshold.to(x.device, self._wide)
        self._tau = self._threshold * self._sizes.sqrt()
        self._free = self._tau == 0  # of no unit, or without a penalty: stays
        self._q_scale = self._p_scale = torch.ones_like(self._tau)
        self._n, self._started = torch.zeros_like(self._tau), False
        self._zero = self._free

    def _views(self) -> tuple[Tensor, Tensor]:
        """q and P, ``[blocks, outer, rows of a block, inner]``."""
        metric = _grouped_view(self._metric, self._layout).to(self._wide)
        return metric * _grouped_view(self._x, self._layout).to(self._wide), metric

    def _at(self, numbers: Tensor) -> Tensor:
        spread: Tensor = _of_rows(numbers, self._layout)
        return spread

    def tops(self) -> Tensor:
        """The largest magnitudes of q, and P, ``[rows, 2]``."""
        q, metric = self._views()
        return torch.cat([_row_tops(q.abs()), _row_tops(metric)], 1)

    def scale_by(self, tops: Tensor) -> None:
        """Take the powers of two near the largest of a group out, before anything is squared."""
        self._q_scale, self._p_scale = _power_of_two(tops[:, 0]), _power_of_two(tops[:, 1])
        self._tau = self._tau / self._q_scale

    def terms(self) -> Tensor:
        """The sum whose root is sought and its slope, of the elements here, ``[rows, 2]``; at n = 0 times tau^2."""
        q, metric = self._views()
        q, metric = q / self._at(self._q_scale), metric / self._at(self._p_scale)
        below = self._at(self._n) * metric + self._at(self._tau)
        squares = (q / below if self._started else q).square()
        slope = squares * (metric / below if self._started else metric)
        return torch.cat([_row_sums(squares), _row_sums(slope)], 1)

    def climb(self, found: Tensor) -> Tensor:
        """A step of Newton from the sums of the whole groups; whether a root still moves."""
        total, slope = found[:, 0], found[:, 1]
        if not self._started:
            length = total.sqrt()
            self._zero = (length <= self._tau) | self._free
            step = (length - self._tau) * total / slope
        else:
            step = total * (total.sqrt() - 1) / slope
        step = torch.where(self._zero, torch.zeros_like(step), step.clamp(min=0))
        self._n, self._started = self._n + step, True
        return (step > 2 * torch.finfo(self._wide).eps * self._n).any()

    def shrunk(self) -> Tensor:
        """The minimizer, as the tensor."""
        n = self._n * (self._q_scale / self._p_scale)
        n, tau = self._at(n), self._at(self._tau * self._q_scale)
        view = _grouped_view(self._x, self._layout)
        metric = _grouped_view(self._metric, self._layout).to(self._wide)
        small = (view.to(self._wide) * (n * metric / (n * metric + tau))).to(view.dtype)
        found = torch.where(self._at(self._zero), torch.zeros_like(view), small)
        return torch.where(self._at(self._free), view, found).as_strided(self._x.size(), self._x.stride())

    def energy(self) -> Tensor:
        """Of the elements here, ``[rows, 1]``."""
        q, _ = self._views()
        return _row_sums(q * _grouped_view(self._x, self._layout).to(self._wide))

    def kept(self, energy: Tensor) -> Tensor:
        """The tensor without the groups whose energy is too small."""
        zero = (energy[:, 0] <= 2 * self._threshold * self._sizes) & ~self._free
        view = _grouped_view(self._x, self._layout)
        return torch.where(self._at(zero), torch.zeros_like(view), view).as_strided(self._x.size(), self._x.stride())
