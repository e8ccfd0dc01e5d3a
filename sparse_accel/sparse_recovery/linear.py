"""Least squares and logistic regression."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .objective import Objective, check_finite, check_float, take_square

_CHUNK = 8192  # rows that are widened to float64 at a time


class _LinearModel(Objective):
    """Mean over rows a of ``value(a.theta, y)``; subclasses give the loss of the predictor and its two derivatives."""

    def __init__(self, features: Tensor, targets: Tensor, names: tuple[str, str]) -> None:
        for value, name in zip((features, targets), names, strict=True):
            check_float(value, name)
            check_finite(value, name)
        if features.dim() < 2 or 0 in features.shape:
            raise ValueError(f"{names[0]}: expected shape [*batch, n, d] without empty dimensions, "
                             f"got {tuple(features.shape)}")  # fmt: skip
        if targets.dim() < 1 or targets.shape[-1] != features.shape[-2]:
            raise ValueError(f"{names[1]}: expected shape [*batch, {features.shape[-2]}], got {tuple(targets.shape)}")
        if targets.dtype != features.dtype or targets.device != features.device:
            raise ValueError(f"{names[1]}: expected {features.dtype} on {features.device} like {names[0]}, "
                             f"got {targets.dtype} on {targets.device}")  # fmt: skip
        try:
            batch = torch.broadcast_shapes(features.shape[:-2], targets.shape[:-1])
        except RuntimeError:
            raise ValueError(f"{names[1]}: expected batch dimensions that broadcast with {tuple(features.shape[:-2])}, "
                             f"got {tuple(targets.shape[:-1])}") from None  # fmt: skip
        rows, size = features.shape[-2:]
        shared = features.dim() == 2  # one matrix for all problems, never copied
        features, targets = features.detach(), targets.detach()
        self._features = features[None] if shared else features.expand(*batch, rows, size).reshape(-1, rows, size)
        self._targets = targets.expand(*batch, rows).reshape(-1, rows)
        self.shape = torch.Size((*batch, size))
        self.batch_dims = len(batch)
        self.samples = rows
        self.initial = features.new_zeros(len(self._targets), size)

    def _value(self, predictor: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError

    def _slope(self, predictor: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError

    def _bend(self, predictor: Tensor) -> Tensor | None:
        """The second derivative ``[B, n]``; None: 1."""
        raise NotImplementedError

    def _data(self, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        if rows is None:
            return self._features, self._targets
        return self._features.index_select(1, rows), self._targets.index_select(1, rows)

    def loss(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        features, targets = self._data(rows)
        return self._value(_apply(features, theta), targets).mean(-1)

    def gradient(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        features, targets = self._data(rows)
        return _adjoint(features, self._slope(_apply(features, theta), targets)) / targets.shape[-1]

    def product(self, theta: Tensor, direction: Tensor, rows: Tensor | None = None) -> Tensor:
        features, targets = self._data(rows)
        along, bend = _apply(features, direction), self._bend(_apply(features, theta))
        return _adjoint(features, along if bend is None else bend * along) / targets.shape[-1]

    def hessian(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        features, _ = self._data(rows)
        return _gram(features, self._bend(_apply(features, theta))).expand(len(theta), -1, -1)

    def hessian_on(self, theta: Tensor, index: Tensor, rows: Tensor | None = None) -> Tensor:
        features, _ = self._data(rows)
        bend = self._bend(_apply(features, theta))
        if len(features) == 1:
            return _gram(features[0][:, index].movedim(1, 0), bend)
        return _gram(features.gather(2, index[:, None].expand(-1, features.shape[1], -1)), bend)

    def diagonal(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        features, _ = self._data(rows)
        bend, squares = self._bend(_apply(features, theta)), features.double().square()
        if bend is None:
            return squares.mean(1).expand(len(theta), -1)
        return _adjoint(squares, bend.double()) / features.shape[1]

    def sample_gradients(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        features, targets = self._data(rows)
        return features.double() * self._slope(_apply(features, theta), targets).double()[..., None]

    def _largest(self, rows: Tensor | None) -> Tensor:
        """The largest eigenvalue of the mean of ``a a^T``: ``[B]``."""
        features, _ = self._data(rows)
        flat = features if features.shape[1] >= features.shape[2] else features.mT
        top = torch.linalg.eigvalsh(_gram(flat, None) * flat.shape[1] / features.shape[1])[:, -1]
        return top.to(features.dtype).expand(len(self._targets))


class LeastSquares(_LinearModel):
    """``|A theta - b|^2 / (2 n)``, of one problem or a batch.

    The gradient is ``A^T (A theta - b) / n`` and the Hessian ``A^T A / n``: scaled alike, which makes a Newton step
    exact.

    Args:
        A: ``[*batch, n, d]``, float32 or float64; ``[n, d]`` serves all problems of a batch.
        b: ``[*batch, n]``.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite.
        TypeError: another dtype.

    Example:
        >>> from sparse_accel.sparse_recovery import solve
        >>> problem = LeastSquares(torch.eye(3), torch.tensor([1.0, 2.0, 3.0]))
        >>> solve(problem, 2).theta
        tensor([0., 2., 3.])
    """

    quadratic = True

    def __init__(self, A: Tensor, b: Tensor) -> None:
        super().__init__(A, b, ("A", "b"))
        self._matrix: Tensor | None = None
        self._top: Tensor | None = None

    def _value(self, predictor: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (predictor - targets).square()

    def _slope(self, predictor: Tensor, targets: Tensor) -> Tensor:
        return predictor - targets

    def _bend(self, predictor: Tensor) -> None:
        return None

    def hessian(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        if rows is not None:
            return super().hessian(theta, rows)
        if self._matrix is None:
            self._matrix = super().hessian(theta)
        return self._matrix

    def hessian_on(self, theta: Tensor, index: Tensor, rows: Tensor | None = None) -> Tensor:
        if rows is None and self._matrix is not None:
            return take_square(self._matrix, index)
        return super().hessian_on(theta, index, rows)

    def smoothness(self, rows: Tensor | None = None) -> Tensor:
        if rows is not None:
            return self._largest(rows)
        if self._top is None:
            self._top = self._largest(None)
        return self._top


class Logistic(_LinearModel):
    """Mean of ``log(1 + e^v) - y v`` with ``v = A theta``, of one problem or a batch.

    On data that a sparse theta separates the minimum lies at infinity: give :func:`solve` a ``ridge``.

    Args:
        A: ``[*batch, n, d]``, float32 or float64; ``[n, d]`` serves all problems of a batch.
        y: ``[*batch, n]`` of the dtype of ``A``, each 0 or 1.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, other targets.
        TypeError: another dtype.

    Example:
        >>> from sparse_accel.sparse_recovery import solve
        >>> A = torch.tensor([[1.0, 0.1], [2.0, -0.2], [-1.0, 0.3], [-0.5, -0.1]])
        >>> solve(Logistic(A, torch.tensor([1.0, 1.0, 0.0, 0.0])), 1, ridge=0.1).support
        tensor([ True, False])
    """

    def __init__(self, A: Tensor, y: Tensor) -> None:
        super().__init__(A, y, ("A", "y"))
        wrong = self._targets[(self._targets != 0) & (self._targets != 1)]
        if wrong.numel():
            raise ValueError(f"y: expected 0 or 1, got {float(wrong[0])}")
        self._top: Tensor | None = None

    def _value(self, predictor: Tensor, targets: Tensor) -> Tensor:
        return F.softplus(predictor) - targets * predictor

    def _slope(self, predictor: Tensor, targets: Tensor) -> Tensor:
        return predictor.sigmoid() - targets

    def _bend(self, predictor: Tensor) -> Tensor:
        return predictor.sigmoid() * predictor.neg().sigmoid()

    def smoothness(self, rows: Tensor | None = None) -> Tensor:
        if rows is not None:
            return self._largest(rows) / 4
        if self._top is None:
            self._top = self._largest(None) / 4
        return self._top


def _apply(features: Tensor, theta: Tensor) -> Tensor:
    """``[1 or B, n, d]`` times ``[B, d]``: ``[B, n]``."""
    return theta @ features[0].T if len(features) == 1 else (features @ theta[..., None])[..., 0]


def _adjoint(features: Tensor, weights: Tensor) -> Tensor:
    """The transpose times ``[B, n]``: ``[B, d]``."""
    return weights @ features[0] if len(features) == 1 else (features.mT @ weights[..., None])[..., 0]


def _gram(features: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over n of ``weight a a^T``, in float64: ``[B, d, d]``."""
    total: Tensor | float = 0.0
    for start in range(0, features.shape[1], _CHUNK):
        part = features[:, start : start + _CHUNK].double()
        scaled = part if weights is None else part * weights[:, start : start + _CHUNK, None].double()
        total = total + scaled.mT @ part
    assert isinstance(total, Tensor)
    return total / features.shape[1]
