"""The quadratic model that minibatches make together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class ModelMean:
    """The weighted mean of the quadratic models that minibatches gave: ``u^T H u / 2 - c.u``.

    On quadratics every batch weighs its rows, so that after an epoch the model is that of all rows; elsewhere old
    models, taken at other points, fade like ``1 / t^4`` (the mean with polynomial decay of degree 3).
    """

    fading: int
    matrix: Tensor | None = None  # [B, d, d], or [B, d] of a diagonal
    linear: Tensor | None = None  # [B, d]
    rows: int = 0

    def update(self, matrix: Tensor, theta: Tensor, gradient: Tensor, rows: int) -> None:
        linear = self._times(matrix, theta.double()) - gradient.double()
        self.rows += rows
        weight = min(1.0, (self.fading + 1) * rows / (self.rows + self.fading * rows))
        if self.matrix is None or self.linear is None:
            self.matrix, self.linear = matrix.clone(), linear
        else:
            self.matrix = torch.lerp(self.matrix, matrix, weight)
            self.linear = torch.lerp(self.linear, linear, weight)

    def gradient(self, theta: Tensor) -> Tensor:
        assert self.matrix is not None
        assert self.linear is not None
        return self._times(self.matrix, theta.double()) - self.linear

    @staticmethod
    def _times(matrix: Tensor, theta: Tensor) -> Tensor:
        return matrix * theta if matrix.dim() == 2 else (matrix @ theta[..., None])[..., 0]
