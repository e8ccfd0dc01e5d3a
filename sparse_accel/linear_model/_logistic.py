"""Weighted logistic regression with the intercept optimized away: what sparse recovery minimizes over k coefficients.

With ``b(theta)`` the best intercept, ``f(theta) = mean_i w_i (log(1 + e^{v_i}) - y_i v_i)``, ``v = A theta + b(theta)``, is
smooth and convex. Its gradient is that at fixed b, and its Hessian the Schur complement: the Gram matrix of the rows,
centred and weighted by the curvatures ``w_i s_i (1 - s_i)``.
"""

from __future__ import annotations

import torch
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

    def intercept(self, theta: Tensor) -> Tensor:
        """The best intercept, ``[1]``: Newton steps in a bracket that halves where they leave it."""
        if not self._intercept:
            return theta.new_zeros(1)
        v = self._rows @ theta[0]
        share = (self._weights * self._y).sum()
        level = (share / (1 - share)).log()
        low, high = level - v.max(), level - v.min()
        b = (low + high) / 2
        for _ in range(_STEPS):
            s = (v + b).sigmoid()
            slope = (self._weights * s).sum() - share
            low, high = torch.where(slope > 0, low, b), torch.where(slope > 0, b, high)
            bend = (self._weights * s * (1 - s)).sum()
            new = b - slope / bend.clamp(min=1e-300)
            new = torch.where((new >= low) & (new <= high), new, (low + high) / 2)
            if bool((new - b).abs() <= 4e-16 * (1 + b.abs())):
                break
            b = new
        return b[None]

    def _predictor(self, theta: Tensor, rows: Tensor | None) -> Tensor:
        if rows is not None:
            raise ValueError("rows: expected None, an intercept is that of all rows")
        return self._rows @ theta[0] + self.intercept(theta)

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
        return self.hessian_on(theta, torch.arange(self.size)[None], rows)

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
