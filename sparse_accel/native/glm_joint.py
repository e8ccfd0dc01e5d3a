"""The joint proximal step of a minibatch: Newton with a line search, on dense systems of min(b, d) unknowns.

With eta = lr / b, m = x - z and g the rows' slopes, the residual is R = m + eta A' g, and Newton's system
(I + eta A' D A) s = -R. With more rows than columns it is solved as it stands, else by the Gram matrix of the rows,
M = I + eta D A A', in one of two forms:

- ``s = -m + eta A' M^-1 (D A m - g)`` far from the solution: R may be 1e15 times as large as s, and cancels;
- ``s = -R + eta A' M^-1 D A R`` near it: the dual variables grow with lr where rows depend on each other, R does not,
  and computed afresh it repairs what the step before lost to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ._module import kernels

_MAX_NEWTON, _MAX_WARM_UP, _MAX_HALVINGS = 200, 500, 60
_FAR = 1e-6  # of the residual over its terms: above it, the first form of Newton's step
_STEEP = 20.0  # predictors of a poisson model above this are first brought down row by row


class _Point(NamedTuple):
    x: Tensor  # [d]
    v: Tensor  # [b] predictors
    moved: Tensor  # [d]
    slopes: Tensor  # [b]
    curve: Tensor  # [b]
    residual: Tensor  # [d]
    value: float  # of the objective
    norm: float  # of the residual
    scale: float  # size of the residual's terms


class _Joint:
    """The problem of a minibatch, in float64."""

    def __init__(self, z: Tensor, rows: Tensor, targets: Tensor, lr: float, family: str, delta: float) -> None:
        self.z, self.rows, self.columns, self.targets = z.contiguous(), rows, rows.T, targets
        self.eta, self.family, self.delta = lr / rows.shape[0], family, delta
        self.by_rows = rows.shape[0] <= rows.shape[1]
        self.gram = torch.mm(rows, rows.T) if self.by_rows else None
        self.factor: Tensor | None = None

    def at(self, x: Tensor) -> _Point:
        """Everything that the search asks of a point; waits for the device once."""
        v = torch.mv(self.rows, x)
        if not x.is_cpu:
            return self._on_device(x, v)
        slopes, curve = torch.empty_like(v), torch.empty_like(v)
        loss = kernels().glm_terms(v, self.targets, self.family, self.delta, slopes, curve)
        pull = torch.mv(self.columns, slopes)
        moved, residual = torch.empty_like(x), torch.empty_like(x)
        way, force, norm = kernels().glm_residual(x, self.z, pull, self.eta, moved, residual)
        return _Point(x, v, moved, slopes, curve, residual, self.eta * loss + way**2 / 2, norm, way + force)

    def _on_device(self, x: Tensor, v: Tensor) -> _Point:
        moved, slopes = x - self.z, self.slope(v)
        pull = torch.mv(self.columns, slopes).mul_(self.eta)
        residual = moved + pull
        numbers = torch.stack((self.loss(v), moved.norm(), pull.norm(), residual.norm()))
        loss, way, force, norm = numbers.tolist()
        value = self.eta * loss + way**2 / 2
        return _Point(x, v, moved, slopes, self.curvature(v), residual, value, norm, way + force)

    def direction(self, p: _Point) -> Tensor:
        """The Newton step at a point, ``[d]``."""
        if self.factor is None or self.family != "gaussian":
            self.factorize(p.curve)
        assert self.factor is not None
        if not self.by_rows:
            return torch.cholesky_solve(p.residual[:, None], self.factor)[:, 0].neg()
        far = p.norm > _FAR * p.scale
        source = p.moved if far else p.residual
        right = p.curve * torch.mv(self.rows, source)
        if far:
            right = right - p.slopes
        if self.family == "gaussian":
            dual = torch.cholesky_solve(right[:, None], self.factor)
        else:
            dual = torch.linalg.lu_solve(self.factor, self.pivots, right[:, None])
        return torch.mv(self.columns, dual[:, 0]).mul_(self.eta).sub_(source)

    def factorize(self, curve: Tensor) -> None:
        """Of Newton's system where the losses curve so."""
        weights = curve * self.eta
        if self.gram is not None:
            matrix = self.gram * weights[:, None]
        else:
            matrix = torch.mm(self.columns * weights, self.rows)
        matrix.diagonal().add_(1.0)
        if self.by_rows and self.family != "gaussian":
            self.factor, self.pivots, _ = torch.linalg.lu_factor_ex(matrix)
        else:
            self.factor = torch.linalg.cholesky_ex(matrix).L

    def slope(self, v: Tensor) -> Tensor:
        if self.family == "binomial":  # full relative precision on both sides
            sign = 1 - 2 * self.targets
            return sign * torch.sigmoid(sign * v)
        if self.family == "poisson":
            return v.exp() - self.targets
        slopes = v - self.targets
        return slopes.clamp_(-self.delta, self.delta) if self.family == "huber" else slopes

    def curvature(self, v: Tensor) -> Tensor:
        if self.family == "binomial":
            return torch.sigmoid(v) * torch.sigmoid(-v)
        if self.family == "poisson":
            return v.exp()
        if self.family == "huber":
            return ((v - self.targets).abs() <= self.delta).to(v.dtype)
        return torch.ones_like(v)

    def loss(self, v: Tensor) -> Tensor:
        if self.family == "binomial":
            w = (1 - 2 * self.targets) * v
            return (w.clamp_min(0) + w.abs().neg_().exp_().log1p_()).sum()
        if self.family == "poisson":
            return (v.exp() - self.targets * v).sum()
        if self.family == "huber":
            size = (v - self.targets).abs_()
            inner = size.clamp_max(self.delta)
            return (inner * (size - inner / 2)).sum()
        away = v - self.targets
        return away.dot(away) / 2


def solve_joint(
    z: Tensor,
    values: Tensor,
    crow: Tensor | None,
    col: Tensor | None,
    targets: Tensor,
    lr: float,
    family: str,
    delta: float,
    average: Callable[[Tensor], Tensor],
) -> tuple[Tensor, int]:
    """``argmin_x (1/b) sum_i loss_i(a_i.x) + |x - z|^2 / (2 lr)`` and the number of Newton steps.

    `average`: the mean of the single rows' steps from a point, which brings a poisson model's start into reach.
    """
    if targets.numel() == 0 or z.numel() == 0:
        return z.clone(), 0
    rows, used = _dense_rows(values, crow, col)
    if rows.shape[1] == 0:
        return z.clone(), 0
    wide = z.to(torch.float64)
    start = wide if used is None else wide.index_select(0, used)

    def mean_step(x: Tensor) -> Tensor:  # on the columns in use
        whole = x if used is None else wide.index_copy(0, used, x)
        stepped = average(whole.to(z.dtype)).to(torch.float64)
        return stepped if used is None else stepped.index_select(0, used)

    x, iterations = _solve(_Joint(start, rows, targets, lr, family, delta), mean_step)
    x = x.to(z.dtype)
    return x if used is None else z.index_copy(0, used, x), iterations


def _dense_rows(values: Tensor, crow: Tensor | None, col: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The rows as a dense float64 matrix of the columns that they touch, and which those are (None: all)."""
    if crow is None or col is None:
        return values.to(torch.float64), None
    used, place = torch.unique(col, return_inverse=True)
    count = crow.numel() - 1
    row = torch.repeat_interleave(torch.arange(count, device=col.device), crow.diff())
    rows = values.new_zeros((count, used.numel()), dtype=torch.float64)
    rows[row, place] = values.to(torch.float64)
    return rows, used


def _solve(problem: _Joint, average: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
    now = problem.at(problem.z)
    if problem.family == "poisson":
        for _ in range(_MAX_WARM_UP):
            if math.isfinite(now.value) and float(now.v.max()) < _STEEP:
                break
            after = problem.at(average(now.x))
            if math.isfinite(now.value) and not after.value < now.value:
                break
            now = after
    iterations = 0
    while iterations < _MAX_NEWTON and now.norm > 1e-15 * now.scale:
        step = problem.direction(now)
        after = problem.at(now.x + step)
        if not (math.isfinite(after.value) and after.norm <= 0.5 * now.norm):
            slope = float(step.dot(now.residual))
            if not slope < 0:
                break
            if -slope <= 1e-13 * abs(now.value):  # the objective has no digits left, the residual has
                if after.norm < now.norm:
                    now = after
                break
            t, halvings = 1.0, 0
            while not after.value <= now.value + 1e-4 * t * slope and halvings < _MAX_HALVINGS:
                t, halvings = t / 2, halvings + 1
                after = problem.at(now.x + t * step)
            if halvings == _MAX_HALVINGS:
                break
        now = after
        iterations += 1
    return now.x, iterations
