"""Penalties of groups by their norms, which the fused steps have."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparse_accel.sharding import all_sums, local_part, shard_groups

from .base import Groupings, Penalty, Stage, check_strengths

OF = ("groups", "params", "flops")


@dataclasses.dataclass(frozen=True, repr=False)
class GroupLasso(Penalty):
    """Group lasso, ``strength * sum_g sqrt(|g|) * ||x_g||``: drives whole groups to zero.

    Source: Yuan & Lin, "Model selection and estimation in regression with grouped variables", JRSS B 2006. With ``l2``
    there is ``l2 / 2 * ||x||^2`` besides, the group elastic net: it keeps the groups that stay small.

    With ``target`` the optimizer finds the strength while it trains (:mod:`sparse_accel.optim.common.target`): the
    share of zero groups follows ``target * x^2 * (3 - 2 x)``, ``x = step / ramp``, for ``ramp`` steps, then it is held.
    RMDA and RAMDA set it exactly, in the proximal iterate, by the order of the groups' dual averages; ProxSGD and
    ProxAdamW approach it, and may go beyond: a unit of coupled groups that is zero has no gradient to come back by (a
    small Transformer lost 55 % of its units to a target of 45 %). The strength found so far is that of the penalty in
    the optimizer's ``param_groups`` and ``state_dict()``; parameter groups with the same target have one strength, and
    share the target.

    Args:
        strength: weight of the penalty, finite, >= 0; not needed with a target, where it is the first.
        by: ``"input"`` (all weights that read one input channel), ``"output"`` (one filter or row), ``"kernel"``
            (one spatial kernel), ``"element"`` (every weight on its own: the same as :class:`L1`).
        target: share in [0, 1) that is to be zero at the end, or None.
        of: what it is a share of: ``"groups"``, ``"params"`` (the weights under the penalty), or ``"flops"`` (the
            multiplications of these weights, which ``param_groups(..., example=...)`` counts).
        ramp: optimizer steps until the target is wanted, >= 0. Train for several times as many. Too short a ramp has
            the weights at the start decide, and may leave a layer next to nothing.
        l2: strength of the squares, >= 0; no part of the target. The operator then comes after the fused step.

    Example:
        >>> GroupLasso(1e-4)
        GroupLasso(strength=0.0001, by='input')
        >>> GroupLasso(target=0.6)
        GroupLasso(strength=0.0, by='input', target=0.6, of='groups', ramp=1000)
    """

    strength: float = math.nan
    by: str = "input"
    target: float | None = None
    of: str = "groups"
    ramp: int = 1000
    l2: float = 0.0
    name: ClassVar[str] = "group_lasso"
    prox_name: ClassVar[str] = "soft"

    def __post_init__(self) -> None:
        if self.target is not None:
            number = isinstance(self.target, (int, float)) and not isinstance(self.target, bool)
            if not number or not 0 <= self.target < 1:
                raise ValueError(f"target: expected a number in [0, 1), or None, got {self.target!r}")
            if self.of not in OF:
                raise ValueError(f"of: expected one of {', '.join(map(repr, OF))}, got {self.of!r}")
            if isinstance(self.ramp, bool) or not isinstance(self.ramp, int) or self.ramp < 0:
                raise ValueError(f"ramp: expected a number of steps >= 0, got {self.ramp!r}")
            if isinstance(self.strength, float) and math.isnan(self.strength):
                object.__setattr__(self, "strength", 0.0)
        check_strengths(self, "l2")
        super().__post_init__()

    def __repr__(self) -> str:
        shown = {key: value for key, value in self.to_plain().items() if key != "name"}
        return f"GroupLasso({', '.join(f'{key}={value!r}' for key, value in shown.items())})"

    def to_plain(self) -> dict[str, Any]:
        """As :meth:`Penalty.to_plain`, with the target if there is one."""
        plain = super().to_plain()
        if self.target is not None:
            plain.update(target=self.target, of=self.of, ramp=self.ramp)
        return {**plain, "l2": self.l2} if self.l2 else plain

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The squares, then the groups if they have a strength; none without ``l2``."""
        if not self.l2:
            return ()
        squares = Stage("ridge", self.by, self.l2)
        return (squares, Stage("soft", self.by, self.strength)) if self.strength else (squares,)

    def value(self, tensors: Tensor | Sequence[Tensor], groupings: Groupings = None) -> Tensor:
        """As :meth:`Penalty.value`."""
        total = super().value(tensors, groupings)
        for tensor, _ in self._pairs(tensors, groupings)[1] if self.l2 else ():
            squares = local_part(tensor.detach()).double().square().sum()
            total += self.l2 / 2 * all_sums([squares], shard_groups(tensor))[0].to(total.device)
        return total

    @torch.no_grad()
    def prox_(self, tensors: Tensor | Sequence[Tensor], step: float = 1.0, groupings: Groupings = None) -> None:
        """As :meth:`Penalty.prox_`."""
        super().prox_(tensors, step, groupings)
        for tensor, _ in self._pairs(tensors, groupings)[1] if self.l2 else ():
            local_part(tensor.detach()).div_(1 + step * self.l2)  # ||x_g|| is homogeneous: this may come last


@dataclasses.dataclass(frozen=True)
class L1(Penalty):
    """Sum of magnitudes, ``strength * ||x||_1``: drives single weights to zero.

    Source: Tibshirani, "Regression shrinkage and selection via the lasso", JRSS B 1996.

    Args:
        strength: weight of the penalty, finite, >= 0.

    Example:
        >>> L1(0.5).value(torch.tensor([1.0, -3.0]))
        tensor(2., dtype=torch.float64)
    """

    name: ClassVar[str] = "l1"
    prox_name: ClassVar[str] = "soft"


@dataclasses.dataclass(frozen=True)
class GroupL0(Penalty):
    """Number of weights in the groups that are not zero, ``strength * sum_g |g| * [x_g != 0]``; not convex.

    Its proximal operator is the hard threshold: a group stays as it is where ``||x_g||^2 > 2 * step * strength * |g|``
    and becomes zero elsewhere. Source: Blumensath & Davies, "Iterative thresholding for sparse approximations", 2008.

    Args:
        strength: weight of the penalty, finite, >= 0.
        by: as for :class:`GroupLasso`.

    Example:
        >>> x = torch.tensor([[3.0, 0.1], [4.0, 0.1]])
        >>> GroupL0(0.5, by="input").prox_(x)
        >>> x
        tensor([[3., 0.],
                [4., 0.]])
    """

    by: str = "input"
    name: ClassVar[str] = "group_l0"
    prox_name: ClassVar[str] = "hard"
    size_power: ClassVar[float] = 1.0
