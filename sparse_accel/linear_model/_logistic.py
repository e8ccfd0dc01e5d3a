"""Weighted logistic regression with the intercept optimized away: what sparse recovery minimizes over k coefficients.

With the best intercept ``b(theta)`` and ``v = A theta + b(theta)``, the mean of ``w (log(1 + e^v) - y v)`` is smooth
and convex. Its gradient is that at fixed b, and its Hessian the Schur complement: the Gram matrix of the rows, centred
and weighted by the curvatures ``w s (1 - s)``, ``s = sigmoid(v)``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn import functional as F

from sparse_accel.sparse_recovery.objective import Objective

_STEPS = 100


class ProfiledLogistic(Objective):
    """One problem, ``theta [1, d]``.

    Args:
        A: rows, float64 ``[n, d]``.
        y: ``[n]``, each 0 or 1; both are there.
        weights: ``[n]``, > 0.
        intercept: whether there is one.

    Example:
        >>> from sparse_accel.sparse_recovery import solve
        >>> A = torch.tensor([[1.0, 0.1], [2.0, -0.2], [3.0, 0.3], [4.0, -0.1]], dtype=torch.float64)
        >>> problem = ProfiledLogistic(A, torch.tensor([0.0, 0, 1, 1], dtype=torch.float64), torch.ones(4).double())
        >>> result = solve(problem, 1, ridge=0.1)
        >>> result.support.tolist(), round(float(problem.intercept(result.theta[None]) / result.theta[0]), 2)
        ([True, False], -2.5)
    """

    def __init__(self, A: Tensor, y: Tensor, weights: Tensor, intercept: bool = True) -> None:
        self._rows, self._y, self._weights = A, y, weights / weights.sum()
        self._intercept = intercept
        self.shape = torch.Size((A.shape[1],))
        self.samples = len(A)
        self.initial = A.new_zeros(1, A.shape[1])
        self._last: tuple[Tensor, Tensor, Tensor] | None = None  # theta, A theta, the intercept

    def restricted(self, index: Tensor) -> ProfiledLogistic:
        """The same of some coefficients alone, the others being zero."""
        return ProfiledLogistic(self._rows[:, index], self._y, self._weights, self._intercept)

    def intercept(self, theta: Tensor) -> Tensor:
        """The best intercept, ``[1]``."""
        return self._at(theta)[1]

    def _at(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """``A theta`` and the best intercept; those of the last theta are kept, which most calls are about."""
        if self._last is None or not torch.equal(self._last[0], theta):
            v = self._rows @ theta[0]
            b = 0.0
            if self._intercept:
                start = 0.0 if self._last is None else float(self._last[2])
                b = _best_intercept(v.numpy(), self._y.numpy(), self._weights.numpy(), start)
            self._last = theta.clone(), v, torch.tensor([b], dtype=v.dtype, device=v.device)
        return self._last[1], self._last[2]

    def _predictor(self, theta: Tensor, rows: Tensor | None) -> Tensor:
        if rows is not None:
            raise ValueError("rows: expected None, an intercept is that of all rows")
        v, b = self._at(theta)
        return v + b

    def _bends(self, theta: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Curvatures ``[n]``, and the rows' mean by them ``[d]``, 0 without an intercept."""
        v = self._predictor(theta, rows)
        bend = self._weights * v.sigmoid() * v.neg().sigmoid()
        if not self._intercept:
            return bend, theta.new_zeros(self.size)
        return bend, bend @ self._rows / bend.sum().clamp(min=1e-300)

    def loss(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        v = self._predictor(theta, rows)
        return (self._weights * (F.softplus(v) - self._y * v)).sum()[None]

    def gradient(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        return ((self._weights * (self._predictor(theta, rows).sigmoid() - self._y)) @ self._rows)[None]

    def product(self, theta: Tensor, direction: Tensor, rows: Tensor | None = None) -> Tensor:
        bend, mean = self._bends(theta, rows)
        along = bend * (self._rows @ direction[0] - mean @ direction[0])
        return (along @ self._rows - along.sum() * mean)[None]

    def hessian(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.hessian_on(theta, torch.arange(self.size, device="cpu")[None], rows)

    def hessian_on(self, theta: Tensor, index: Tensor, rows: Tensor | None = None) -> Tensor:
        bend, mean = self._bends(theta, rows)
        part = self._rows[:, index[0]] - mean[index[0]]
        return (part.T @ (bend[:, None] * part))[None]

    def diagonal(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        bend, mean = self._bends(theta, rows)
        return (bend @ (self._rows - mean).square())[None]

    def sample_gradients(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        slope = self._predictor(theta, rows).sigmoid() - self._y
        return (len(self._y) * self._weights * slope)[None, :, None] * self._rows

    def smoothness(self, rows: Tensor | None = None) -> Tensor:
        centred = self._rows - self._weights @ self._rows if self._intercept else self._rows
        gram = centred.T @ (self._weights[:, None] * centred)
        return torch.linalg.eigvalsh(gram)[-1:] / 4


def _best_intercept(v: np.ndarray, y: np.ndarray, weights: np.ndarray, start: float) -> float:
    """The root of ``sum w (sigmoid(v + b) - y)``: Newton steps, halved intervals where they leave the bracket."""
    share = weights @ y
    level = math.log(share / (weights @ (1 - y)))
    low, high = level - float(v.max()), level - float(v.min())  # all rows below the mean, all above it
    b = min(max(start, low), high)
    for _ in range(_STEPS):
        s = expit(v + b)
        slope = float(weights @ s - share)
        low, high = (low, b) if slope > 0 else (b, high)
        bend = float(weights @ (s * (1 - s)))
        new = b - slope / bend if bend > 0 else math.inf
        new = new if low <= new <= high else (low + high) / 2
        if abs(new - b) <= 4e-16 * (1 + abs(b)):
            break
        b = new
    return b
