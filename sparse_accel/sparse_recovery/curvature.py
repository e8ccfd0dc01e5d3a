"""Damped quadratic models: Newton points, the choice of a support, refits on it.

Every kind works in the metric of its own diagonal, so that neither the test for singularity nor damping depends on the
units of theta: damping ``delta`` adds ``delta`` times the diagonal (Marquardt, 1963).
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from .elimination import eliminate, eliminate_low_rank, largest, small_inverse
from .objective import View, take_square

# Tried first where a curvature is singular: a refit wants its minimizer, while among too many coordinates for the data
# greedy elimination chooses well only from a point near theta (64 rows, 128 unknowns: all supports found, not 9 in 10).
REFIT_DAMPING, CHOICE_DAMPING = 1e-10, 1e-3
_ENTRIES = 2**26  # of the inverses that are eliminated on at a time: half a gigabyte
KINDS = ("hessian", "diagonal", "fisher")


class Curvature(abc.ABC):
    """A matrix ``[B, d, d]`` with damping, once :meth:`factor` has been called.

    Attributes:
        damping: what :meth:`factor` ended with, ``[B]``, relative to the diagonal.
    """

    damping: Tensor

    @abc.abstractmethod
    def factor(self, damping: Tensor) -> None:
        """Take ``damping [B]``, raised tenfold until the matrix is positive definite."""

    @abc.abstractmethod
    def solve(self, gradient: Tensor) -> Tensor:
        """The damped inverse times ``[B, d]``, float64."""

    @abc.abstractmethod
    def choose(self, v: Tensor, k: int) -> Tensor:
        """The support ``[B, k]`` that greedy elimination leaves of the point v."""

    @abc.abstractmethod
    def refit(self, v: Tensor, index: Tensor) -> Tensor:
        """Minimizer on ``index`` of the model whose minimizer is v: the OBS update, ``[B, k]``."""


def escalate(damping: Tensor, bad: Tensor, first: float = CHOICE_DAMPING) -> Tensor:
    """Ten times the damping, but at least ``first``, where it did not do."""
    raised = torch.where(bad, (damping * 10).clamp(min=first), damping)
    if bool((raised > 1e20).any()):
        raise FloatingPointError(
            "curvature: expected finite second derivatives, no damping makes them positive definite"
        )
    return raised


def _metric(diagonal: Tensor, matrix: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scales ``[B, d]`` whose squares are the diagonal's magnitudes, and which coordinates have no curvature at all.

    A small entry may be one of small units. It is rounding where the rest of its row is too large for a positive
    semidefinite matrix.
    """
    size, eps = diagonal.abs(), torch.finfo(diagonal.dtype).eps
    top = size.amax(-1, keepdim=True)
    dead = size <= eps**2 * top
    if matrix is not None:
        dead |= (size <= eps * top) & (matrix.abs().amax(-1).square() > 2 * size * top)
    mean = size.mean(-1, keepdim=True)
    return torch.where(dead, torch.where(mean > 0, mean, 1.0), size).sqrt(), dead


class Dense(Curvature):
    """A matrix ``[B, d, d]``, float64. A coordinate without curvature gets that of the average one: it stays put."""

    def __init__(self, matrix: Tensor, first: float = CHOICE_DAMPING) -> None:
        self._first = first
        shared = len(matrix) > 1 and matrix.stride(0) == 0
        self._count = len(matrix)
        matrix = matrix[:1] if shared else matrix
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)
        self._scale, dead = _metric(diagonal, matrix)
        self._matrix = matrix / (self._scale[:, :, None] * self._scale[:, None])
        self._matrix.diagonal(dim1=-2, dim2=-1).add_(dead.to(matrix.dtype))
        self._floor = matrix.new_zeros(len(matrix))  # damping known to be needed
        self._factor: Tensor | None = None
        self.damping = matrix.new_zeros(self._count)

    def factor(self, damping: Tensor) -> None:
        if len(self._matrix) == 1 and self._count > 1:
            if bool((damping == damping[0]).all()):
                damping = damping[:1]
            else:
                self._matrix = self._matrix.expand(self._count, -1, -1)
                self._scale = self._scale.expand(self._count, -1)
                self._floor = self._floor.expand(self._count)
        damping = torch.maximum(damping, self._floor)
        if self._factor is not None and len(self._factor) == len(damping) and bool((damping == self.damping).all()):
            return
        size = self._matrix.shape[-1]
        while True:
            factor, info = torch.linalg.cholesky_ex(self._damped(self._matrix, damping))
            pivots = factor.diagonal(dim1=-2, dim2=-1).square().amin(-1) if size else damping + 1
            # A pivot of rounding errors is a singular matrix that went unnoticed.
            bad = (info != 0) | ~(pivots > 16 * size * torch.finfo(factor.dtype).eps)
            if not bool(bad.any()):
                break
            damping = escalate(damping, bad, self._first)
            self._floor = torch.where(bad, damping, self._floor)
        self._factor = factor
        self.damping = damping.expand(self._count)

    @staticmethod
    def _damped(matrix: Tensor, damping: Tensor) -> Tensor:
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        return matrix + damping[:, None, None] * eye

    def solve(self, gradient: Tensor) -> Tensor:
        assert self._factor is not None
        scaled = gradient.to(self._factor.dtype) / self._scale
        if len(self._factor) == 1:  # all right-hand sides at once
            return torch.cholesky_solve(scaled.T, self._factor[0]).T / self._scale
        return torch.cholesky_solve(scaled[..., None], self._factor)[..., 0] / self._scale

    def choose(self, v: Tensor, k: int) -> Tensor:
        assert self._factor is not None
        inverse = torch.cholesky_inverse(self._factor).expand(len(v), -1, -1)
        scaled = v * self._scale
        return torch.cat([eliminate(inverse[part], scaled[part], k) for part in self._parts(len(v))])

    def _parts(self, count: int) -> list[slice]:
        """Of a batch that shares one matrix, so many problems at a time that their own copies stay within memory."""
        length = max(1, _ENTRIES // self._matrix.shape[-1] ** 2)
        return [slice(start, start + length) for start in range(0, count, length)]

    def refit(self, v: Tensor, index: Tensor) -> Tensor:
        scaled = v * self._scale
        matrix = self._matrix.expand(len(v), -1, -1)
        image = scaled @ self._matrix[0] if len(self._matrix) == 1 else (matrix @ scaled[..., None])[..., 0]
        wanted = (image + self.damping[:, None] * scaled).gather(1, index)[..., None]
        values = []
        for part in self._parts(len(v)):
            factor = torch.linalg.cholesky(self._damped(take_square(matrix[part], index[part]), self.damping[part]))
            values.append(torch.cholesky_solve(wanted[part], factor)[..., 0])
        return torch.cat(values) / self._scale.expand(len(v), -1).gather(1, index)


class Diagonal(Curvature):
    """A diagonal matrix, as ``[B, d]``: removing the least ``v_i^2 h_i`` is exact, and leaves nothing to refit."""

    def __init__(self, diagonal: Tensor) -> None:
        self._scale, dead = _metric(diagonal)
        self._unit = diagonal / self._scale.square() + dead.to(diagonal.dtype)
        self.damping = diagonal.new_zeros(len(diagonal))

    def factor(self, damping: Tensor) -> None:
        while True:
            bad = ~((self._unit + damping[:, None]).amin(-1) > 1e-12)
            if not bool(bad.any()):
                break
            damping = escalate(damping, bad)
        self.damping = damping

    def _values(self) -> Tensor:
        return (self._unit + self.damping[:, None]) * self._scale.square()

    def solve(self, gradient: Tensor) -> Tensor:
        return gradient.to(self._unit.dtype) / self._values()

    def choose(self, v: Tensor, k: int) -> Tensor:
        return largest(v.square() * self._values(), k)

    def refit(self, v: Tensor, index: Tensor) -> Tensor:
        return v.gather(1, index)


class LowRank(Curvature):
    """The empirical Fisher matrix of m < d gradients plus ridge, inverted by Woodbury's identity in O(m^2 d)."""

    def __init__(self, gradients: Tensor, ridge: float) -> None:
        self._gradients = gradients / gradients.shape[1] ** 0.5  # [B, m, d]
        self._scale, _ = _metric(self._gradients.square().sum(1))
        self._ridge = ridge
        self.damping = gradients.new_zeros(len(gradients))

    def factor(self, damping: Tensor) -> None:
        if not self._ridge:  # singular without either
            damping = torch.where(damping > 0, damping, escalate(damping, damping <= 0))
        self.damping = damping
        # The matrix is E (I + G^T G) E.
        self._unit = (damping[:, None] * self._scale.square() + self._ridge).sqrt()
        self._factors = self._gradients / self._unit[:, None]
        self._small = small_inverse(self._factors)

    def solve(self, gradient: Tensor) -> Tensor:
        scaled = gradient.to(self._unit.dtype) / self._unit
        return _low_rank_solve(self._factors, self._small, scaled) / self._unit

    def choose(self, v: Tensor, k: int) -> Tensor:
        return eliminate_low_rank(self._factors, v * self._unit, k)

    def refit(self, v: Tensor, index: Tensor) -> Tensor:
        scaled = v * self._unit
        image = scaled + ((self._factors @ scaled[..., None]).mT @ self._factors)[:, 0]
        factors = self._factors.gather(2, index[:, None].expand(-1, self._factors.shape[1], -1))
        values = _low_rank_solve(factors, small_inverse(factors), image.gather(1, index))
        return values / self._unit.gather(1, index)


def _low_rank_solve(factors: Tensor, small: Tensor, wanted: Tensor) -> Tensor:
    """``(I + G^T G)^-1`` times ``[B, d]``, with ``small = (I + G G^T)^-1``."""
    return wanted - ((small @ (factors @ wanted[..., None])).mT @ factors)[:, 0]


def statistic(kind: str, view: View, theta: Tensor) -> Tensor:
    """The matrix ``[B, d, d]`` or diagonal ``[B, d]``, with ridge, or the gradients ``[B, m, d]``, without."""
    if kind == "fisher":
        return view.objective.sample_gradients(theta, view.rows)
    if kind == "diagonal":
        return view.objective.diagonal(theta, view.rows) + view.ridge
    matrix = view.objective.hessian(theta, view.rows)
    if not view.ridge:
        return matrix
    return matrix + view.ridge * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def build(kind: str, value: Tensor, ridge: float) -> Curvature:
    """The curvature of a :func:`statistic`."""
    if kind == "diagonal":
        return Diagonal(value)
    if kind == "hessian":
        return Dense(value)
    if value.shape[1] < value.shape[2]:
        return LowRank(value, ridge)
    matrix = value.mT @ value / value.shape[1]
    return Dense(matrix + ridge * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device))
