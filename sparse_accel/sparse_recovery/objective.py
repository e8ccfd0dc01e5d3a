"""What the solvers ask of a problem, and the same with ridge and minibatch put in."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Objective(abc.ABC):
    """A smooth function of theta, or a batch of B independent ones.

    All methods take theta as ``[B, d]`` (B = 1 without batch dimensions) and ``rows``, the samples to average over
    (int64; None: all). Values come in the dtype of theta, curvature in float64.

    Attributes:
        shape: of theta as the user sees it; its first ``batch_dims`` dimensions count the independent problems.
        samples: of which the function is the mean, or None.
        quadratic: the curvature is the same everywhere.
        initial: where solvers start, ``[B, d]``.
    """

    shape: torch.Size
    batch_dims: int = 0
    samples: int | None = None
    quadratic: bool = False
    initial: Tensor

    @property
    def batch_shape(self) -> torch.Size:
        """The batch dimensions."""
        return self.shape[: self.batch_dims]

    @property
    def size(self) -> int:
        """d, the unknowns of each problem."""
        return self.shape[self.batch_dims :].numel()

    def flatten(self, theta: Tensor, name: str = "initial") -> Tensor:
        """A copy of theta as ``[B, d]``, checked."""
        if not isinstance(theta, Tensor) or theta.shape != self.shape:
            came = tuple(theta.shape) if isinstance(theta, Tensor) else type(theta).__name__
            raise ValueError(f"{name}: expected a tensor of shape {tuple(self.shape)}, got {came}")
        check_finite(theta, name)
        flat = theta.detach().to(self.initial.device, self.initial.dtype)
        return flat.reshape(self.batch_shape.numel(), self.size).clone()

    @abc.abstractmethod
    def loss(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """``[B]``."""

    @abc.abstractmethod
    def gradient(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """``[B, d]``."""

    @abc.abstractmethod
    def product(self, theta: Tensor, direction: Tensor, rows: Tensor | None = None) -> Tensor:
        """The Hessian times ``direction [B, d]``: ``[B, d]``."""

    @abc.abstractmethod
    def hessian(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """``[B, d, d]``, float64."""

    @abc.abstractmethod
    def hessian_on(self, theta: Tensor, index: Tensor, rows: Tensor | None = None) -> Tensor:
        """The rows and columns ``index [B, k]`` of the Hessian: ``[B, k, k]``, float64."""

    @abc.abstractmethod
    def diagonal(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """The Hessian's diagonal ``[B, d]``, float64."""

    @abc.abstractmethod
    def sample_gradients(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """One gradient for each sample: ``[B, m, d]``, float64."""

    def smoothness(self, rows: Tensor | None = None) -> Tensor | None:
        """A bound ``[B]`` on the Hessian's largest eigenvalue anywhere, or None where no bound is known."""
        return None


@dataclass(frozen=True)
class View:
    """An objective on some rows, plus ``ridge / 2 |theta|^2``."""

    objective: Objective
    ridge: float = 0.0
    rows: Tensor | None = None

    def loss(self, theta: Tensor) -> Tensor:
        value = self.objective.loss(theta, self.rows)
        return value + 0.5 * self.ridge * theta.square().sum(-1) if self.ridge else value

    def gradient(self, theta: Tensor) -> Tensor:
        value = self.objective.gradient(theta, self.rows)
        return value + self.ridge * theta if self.ridge else value

    def product(self, theta: Tensor, direction: Tensor) -> Tensor:
        value = self.objective.product(theta, direction, self.rows)
        return value + self.ridge * direction if self.ridge else value

    def hessian_on(self, theta: Tensor, index: Tensor) -> Tensor:
        matrix = self.objective.hessian_on(theta, index, self.rows)
        return matrix + self.ridge * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)

    def smoothness(self) -> Tensor | None:
        value = self.objective.smoothness(self.rows)
        return None if value is None else value + self.ridge


def check_finite(value: Tensor, name: str) -> None:
    """ValueError with the number of bad entries and the first of them."""
    good = torch.isfinite(value.detach())
    if not bool(good.all()):
        place = (~good).nonzero()[0].tolist()
        raise ValueError(
            f"{name}: expected finite numbers, got {int((~good).sum())} that are not, "
            f"the first {float(value.detach()[~good][0])} at {place}"
        )


def check_float(value: Any, name: str) -> None:
    """TypeError unless ``value`` is a float32 or float64 tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {value.dtype}")


def as_shape(size: int | Sequence[int]) -> torch.Size:
    """``size`` as a shape, checked."""
    sizes = (size,) if isinstance(size, int) else tuple(size)
    if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in sizes):
        raise ValueError(f"size: expected positive whole numbers, got {size!r}")
    return torch.Size(sizes)


def take_square(matrix: Tensor, index: Tensor) -> Tensor:
    """Rows and columns ``index [B, k]`` of ``matrix [B, d, d]``: ``[B, k, k]``."""
    batch = torch.arange(len(matrix), device=matrix.device)[:, None, None]
    return matrix[batch, index[:, :, None], index[:, None, :]]
