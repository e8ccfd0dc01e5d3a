"""Sums of penalties whose operator is a composition: of squares, cones, groups inside groups, in this order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparse_accel.groups import Grouping
from sparse_accel.sharding import local_part

from .base import Groupings, Penalty, Stage, check_strengths
from .group import L1, GroupL0, GroupLasso
from .plain import penalty_from_plain, register

__all__ = ["SparseGroupLasso", "Sum"]

_FINENESS = {"element": 0, "kernel": 1, "input": 2, "output": 2}


@dataclasses.dataclass(frozen=True)
class SparseGroupLasso(Penalty):
    """Group lasso and L1, ``strength * sum_g sqrt(|g|) * ||x_g|| + l1 * ||x||_1``: whole groups go to zero, and single
    weights of those that stay.

    Its operator is the group one after the soft threshold, exactly, also in a diagonal metric. Source: Friedman, Hastie
    & Tibshirani, "A note on the group lasso and a sparse group lasso", 2010.

    Args:
        strength: of the groups, finite, >= 0.
        l1: of the single weights, finite, >= 0.
        by: as for :class:`GroupLasso`.

    Example:
        >>> x = torch.tensor([[3.5, 0.4], [4.5, -0.6]])
        >>> SparseGroupLasso(0.5**0.5, l1=0.5).prox_(x)
        >>> x
        tensor([[2.4000, 0.0000],
                [3.2000, 0.0000]])
    """

    l1: float = 0.0
    by: str = "input"
    name: ClassVar[str] = "sparse_group_lasso"
    prox_name: ClassVar[str] = "stages"

    def __post_init__(self) -> None:
        check_strengths(self, "l1")
        super().__post_init__()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The single weights, then the groups."""
        return Stage("weights", self.by, self.l1), Stage("soft", self.by, self.strength)

    def to_plain(self) -> dict[str, Any]:
        """As :meth:`Penalty.to_plain`, with ``l1``."""
        return {**super().to_plain(), "l1": self.l1}

    def value(self, tensors: Tensor | Sequence[Tensor], groupings: Groupings = None) -> Tensor:
        """As :meth:`Penalty.value`."""
        pairs = self._pairs(tensors, groupings)[1]
        single = L1(self.l1).value([tensor for tensor, _ in pairs])
        whole = GroupLasso(self.strength, self.by).value(tensors, groupings)
        return whole + single.to(whole.device)

    @torch.no_grad()
    def prox_(self, tensors: Tensor | Sequence[Tensor], step: float = 1.0, groupings: Groupings = None) -> None:
        """As :meth:`Penalty.prox_`."""
        _run(self, tensors, step, groupings)


@dataclasses.dataclass(frozen=True, init=False)
class Sum(Penalty):
    """Several penalties and constraints together, where the operator of the sum is exactly a composition of theirs.

    It is for ``L1``, ``GroupLasso`` (with or without ``l2``), ``SparseGroupLasso`` and ``NonNegative`` in any number,
    if groups lie inside groups: elements in kernels in channels, of one kind, inputs or outputs (Jenatton, Mairal,
    Obozinski & Bach, "Proximal methods for hierarchical sparse coding", JMLR 2011). One ``GroupL0`` may join them whose
    groups contain all of the others. A ``Box`` goes with ``L1`` and squares. Anything else (``NuclearNorm``,
    ``Binary``, a registered penalty) goes with squares, of a ``GroupLasso(0.0, l2=...)``. Other sums are refused:
    their operator is no composition.

    ``RAMDA`` and ``ProxAdamW`` take what has groups of one kind besides elements.

    Args:
        *terms: penalties; sums among them are opened, and the order does not matter.

    Raises:
        ValueError: the operator of the sum is not known exactly; the message names what stands against it.
        TypeError: a term is no penalty.

    Example:
        >>> x = torch.tensor([[3.5, -9.0], [4.5, 0.2]])
        >>> both = Sum(L1(0.5), GroupLasso(0.5**0.5))
        >>> both == SparseGroupLasso(0.5**0.5, l1=0.5), both.by
        (False, 'input')
        >>> both.prox_(x)
        >>> x[:, 0]
        tensor([2.4000, 3.2000])
    """

    strength: float = dataclasses.field(default=1.0, init=False, repr=False)
    terms: tuple[Penalty, ...] = ()
    name: ClassVar[str] = "sum"
    prox_name: ClassVar[str] = "stages"

    def __init__(self, *terms: Any) -> None:
        opened: list[Penalty] = []
        for term in terms:
            penalty = penalty_from_plain(term)
            if penalty is None:
                raise TypeError("terms: expected penalties, got None")
            if getattr(penalty, "target", None) is not None:
                raise ValueError("terms: a GroupLasso(target=...) finds its strength alone, not in a sum")
            opened += penalty.terms if isinstance(penalty, Sum) else [penalty]
        if not opened:
            raise ValueError("terms: expected one penalty at least")
        object.__setattr__(self, "strength", 1.0)
        object.__setattr__(self, "terms", tuple(opened))
        _ordered([stage for term in self.terms for stage in term.parts()])  # raises what is no composition

    @property
    def by(self) -> str:
        """That of the term with the largest groups."""
        return max((term.by for term in self.terms), key=_FINENESS.__getitem__)

    @property
    def whole(self) -> bool:  # type: ignore[override]
        """Whether a term needs all of a tensor."""
        return any(term.whole for term in self.terms)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Squares, cones, groups from small to large, intervals; or one operator of another kind after the squares."""
        return _ordered([stage for term in self.terms for stage in term.parts()])

    @property
    def not_in_metric(self) -> str:
        """See :class:`Penalty`."""
        if len({stage.by for stage in self.stages if stage.kind == "soft" and stage.by != "element"}) > 1:
            return "groups of weights inside groups are exact without a metric only"
        return next((term.not_in_metric for term in self.terms if term.not_in_metric), "")

    def scaled(self, factor: float) -> Penalty:
        """See :class:`Penalty`: the factor is of the square root of the size."""
        if factor == 1:
            return self
        own = [term if term.by != self.by else term.scaled(factor ** (2 * term.size_power)) for term in self.terms]
        return Sum(*own)

    def to_plain(self) -> dict[str, Any]:
        """As :meth:`Penalty.to_plain`, with the plain values of the terms."""
        return {"name": self.name, "terms": [term.to_plain() for term in self.terms], "by": self.by}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Sum:
        """See :class:`Penalty`."""
        return cls(*plain["terms"])

    def value(self, tensors: Tensor | Sequence[Tensor], groupings: Groupings = None) -> Tensor:
        """As :meth:`Penalty.value`."""
        values = [term.value(tensors, groupings) for term in self.terms]
        return torch.stack([value.to(values[0].device) for value in values]).sum()

    @torch.no_grad()
    def prox_(self, tensors: Tensor | Sequence[Tensor], step: float = 1.0, groupings: Groupings = None) -> None:
        """As :meth:`Penalty.prox_`."""
        _run(self, tensors, step, groupings)


def _run(penalty: Penalty, tensors: Tensor | Sequence[Tensor], step: float, groupings: Groupings) -> None:
    """The stages of a penalty, one after the other, on every tensor."""
    if not math.isfinite(step) or step < 0:
        raise ValueError(f"step: expected a finite number >= 0, got {step!r}")
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    if groupings is None or isinstance(groupings, Grouping):
        groupings = [groupings] * len(tensors)
    penalty._pairs(tensors, groupings)  # raises what does not fit, before anything changes
    for tensor, grouping in zip(tensors, groupings, strict=True):
        size = step
        for stage in penalty.stages:
            if not Grouping(stage.by).applies_to(tensor):
                continue
            if stage.kind == "ridge":
                local_part(tensor.detach()).div_(1 + size * stage.strength)
                size = size / (1 + size * stage.strength)
            elif stage.kind == "clip":
                local_part(tensor.detach()).clamp_(stage.low, stage.high)
            elif stage.kind == "weights":
                L1(stage.strength).prox_(tensor, size)
            elif stage.kind == "call":
                stage.penalty.prox_(tensor, size, grouping)
            else:
                kind = GroupLasso if stage.kind == "soft" else GroupL0
                kind(stage.strength, stage.by).prox_(tensor, size, grouping)


def _ordered(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages of a sum in the order in which their composition is its operator.

    Squares first, for they only change step and point; then the cone, soft thresholds from small groups to large (the
    sign of a weight, and the direction of a group inside another, are not changed by what comes later), and the hard
    threshold: for what is positively homogeneous, removing a group loses half the squares of what the operator leaves
    of it. An interval comes last: a convex function of one number is least in it at the nearest point to its minimum.

    Raises:
        ValueError: it is none.
    """
    squares = [stage for stage in stages if stage.kind == "ridge"]
    clips = [stage for stage in stages if stage.kind == "clip"]
    soft = [stage for stage in stages if stage.kind in ("soft", "weights")]
    hard = [stage for stage in stages if stage.kind == "hard"]
    calls = [stage for stage in stages if stage.kind == "call"]
    if calls and len(calls) + len(clips) + len(soft) + len(hard) > 1:
        raise ValueError(
            f"terms: {type(calls[0].penalty).__name__} goes with squares alone (GroupLasso(0.0, l2=...)): with other "
            "penalties the operator of the sum is no composition"
        )
    coarse = {stage.by for stage in (*soft, *hard) if stage.kind != "weights" and stage.by in ("input", "output")}
    if len(coarse) > 1:
        raise ValueError("terms: groups by 'input' and by 'output' overlap: the operator of their sum is not known")
    if len(hard) > 1:
        raise ValueError("terms: expected one GroupL0 at most")
    finest = min((_level(stage) for stage in hard), default=2)
    if any(_level(stage) > finest for stage in soft):
        raise ValueError("terms: the groups of GroupL0 have to contain those of the other penalties")
    low, high = max((c.low for c in clips), default=-math.inf), min((c.high for c in clips), default=math.inf)
    if low > high:
        raise ValueError(f"terms: no weight is in all intervals: at least {low:g}, and at most {high:g}")
    interval = [Stage("clip", low=low, high=high)] if clips else []
    cone = (low, high) in ((0.0, math.inf), (-math.inf, 0.0))
    if interval and not cone and (hard or any(_level(stage) for stage in soft)):
        raise ValueError(
            f"terms: the interval [{low:g}, {high:g}] goes with L1 and squares alone: with groups the operator of the "
            "sum is no composition"
        )
    merged: dict[tuple[str, str], Stage] = {}
    for stage in sorted(soft, key=_level):
        known = merged.get((stage.kind, stage.by), stage._replace(strength=0.0))
        merged[stage.kind, stage.by] = known._replace(strength=known.strength + stage.strength)
    thresholds = [*merged.values(), *hard, *calls]
    return (*squares, *interval, *thresholds) if cone else (*squares, *thresholds, *interval)


def _level(stage: Stage) -> int:
    return 0 if stage.kind == "weights" else _FINENESS[stage.by]


for _kind in (SparseGroupLasso, Sum):
    register(_kind)
