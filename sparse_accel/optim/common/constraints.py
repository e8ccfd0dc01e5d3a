"""Constraints on single weights, in the place of a penalty: the proximal operator is the projection.

A projection of each weight on its own is the same in every diagonal metric, so that all of RMDA, RAMDA, ProxSGD and
ProxAdamW take them as they are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparse_accel.groups import Grouping
from sparse_accel.penalties import Groupings, Penalty, Stage, register
from sparse_accel.sharding import all_sums, local_part, shard_groups

__all__ = ["Binary", "Box", "Constraint", "NonNegative"]


@dataclasses.dataclass(frozen=True)
class Constraint(Penalty):
    """Base of the constraints: 0 where they hold, infinite elsewhere."""

    strength: float = dataclasses.field(default=1.0, init=False, repr=False)
    prox_name: ClassVar[str] = "projection"
    projects: ClassVar[bool] = True
    size_power: ClassVar[float] = 0.0

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The projection."""
        return (Stage("call", penalty=self),)

    def operate_(self, weight: Tensor, tau: Tensor, metric: Tensor | None, grouping: Grouping) -> None:
        """The projection, whatever step and metric are."""
        self.project_(weight)

    def project_(self, weights: Tensor) -> None:
        """Replace every weight by the nearest that is allowed, in place; NaN stays."""
        raise NotImplementedError(f"{type(self).__name__} has no projection")

    def to_plain(self) -> dict[str, Any]:
        """The constraint as a dictionary of plain values.

        Example:
            >>> Box(-1, 1).to_plain()
            {'name': 'box', 'low': -1.0, 'high': 1.0}
        """
        return {"name": self.name, **{key: value for key, value in vars(self).items() if key != "strength"}}

    def value(self, tensors: Tensor | Sequence[Tensor], groupings: Groupings = None) -> Tensor:
        """0 where all weights of all tensors are allowed, else infinite; ``[]`` float64, as :meth:`Penalty.value`."""
        tensors, pairs = self._pairs(tensors, groupings)
        outside = torch.zeros((), dtype=torch.float64, device=tensors[0].device if tensors else None)
        for tensor, _ in pairs:
            here = local_part(tensor.detach())
            allowed = here.clone()
            self.project_(allowed)
            (count,) = all_sums([(allowed != here).sum().double()], shard_groups(tensor))
            outside += count.to(outside.device)
        return torch.where(outside > 0, math.inf, 0.0).double()

    @torch.no_grad()
    def prox_(self, tensors: Tensor | Sequence[Tensor], step: float = 1.0, groupings: Groupings = None) -> None:
        """Project every tensor, in place, whatever the step is; arguments as for :meth:`Penalty.prox_`."""
        if not math.isfinite(step) or step < 0:
            raise ValueError(f"step: expected a finite number >= 0, got {step!r}")
        for tensor, _ in self._pairs(tensors, groupings)[1]:
            self.project_(local_part(tensor.detach()))


@dataclasses.dataclass(frozen=True)
class Box(Constraint):
    """Weights in ``[low, high]``.

    Args:
        low: smallest weight; may be ``-inf``.
        high: largest weight, >= ``low``; may be ``inf``.

    Example:
        >>> x = torch.tensor([-2.0, 0.5, 3.0])
        >>> Box(-1, 1).prox_(x)
        >>> x
        tensor([-1.0000,  0.5000,  1.0000])
    """

    low: float = -1.0
    high: float = 1.0
    name: ClassVar[str] = "box"

    def __post_init__(self) -> None:
        _numbers(self, "low", "high")
        if not self.low <= self.high or self.low == math.inf or self.high == -math.inf:
            raise ValueError(f"low, high: expected low <= high, got {self.low!r}, {self.high!r}")
        super().__post_init__()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The interval."""
        return (Stage("clip", low=self.low, high=self.high),)

    def project_(self, weights: Tensor) -> None:
        """Clamp."""
        weights.clamp_(self.low, self.high)


@dataclasses.dataclass(frozen=True)
class NonNegative(Constraint):
    """Weights >= 0.

    Example:
        >>> x = torch.tensor([-2.0, 0.5])
        >>> NonNegative().prox_(x)
        >>> x
        tensor([0.0000, 0.5000])
    """

    name: ClassVar[str] = "non_negative"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The interval."""
        return (Stage("clip", low=0.0),)

    def project_(self, weights: Tensor) -> None:
        """Clamp from below."""
        weights.clamp_(min=0)


@dataclasses.dataclass(frozen=True)
class Binary(Constraint):
    """Weights that are ``low`` or ``high``, the nearer of the two (half way: ``high``); not convex.

    With a momentum below 1, RMDA and RAMDA train on weights between the two; the proximal iterate is binary.

    Args:
        low: the one, finite.
        high: the other, finite, > ``low``.

    Example:
        >>> x = torch.tensor([-0.2, 0.1, 3.0])
        >>> Binary(-1, 1).prox_(x)
        >>> x
        tensor([-1.,  1.,  1.])
    """

    low: float = 0.0
    high: float = 1.0
    name: ClassVar[str] = "binary"

    def __post_init__(self) -> None:
        _numbers(self, "low", "high")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low, high: expected finite numbers, low < high, got {self.low!r}, {self.high!r}")
        super().__post_init__()

    def project_(self, weights: Tensor) -> None:
        """The nearer of the two."""
        middle = self.low + (self.high - self.low) / 2
        nearest = torch.where(weights < middle, self.low, self.high).to(weights.dtype)
        weights.copy_(torch.where(weights.isnan(), weights, nearest))


def _numbers(constraint: Constraint, *names: str) -> None:
    """Make these fields floats; ValueError where they are no numbers."""
    for name in names:
        value = getattr(constraint, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            raise ValueError(f"{name}: expected a number, got {value!r}")
        object.__setattr__(constraint, name, float(value))


for _kind in (Box, NonNegative, Binary):
    register(_kind)
