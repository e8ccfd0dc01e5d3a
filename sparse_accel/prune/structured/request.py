"""Which widths of a model are pruned, and how many of their units are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from sparse_accel.channels.widths import Width, grouped
from sparse_accel.prune.structured.choose import unit_sets


@dataclass(frozen=True)
class Request:
    """What the caller of :class:`~sparse_accel.prune.structured.pruner.ISpaSP` asked for.

    Attributes:
        keep: share of each width's units.
        keep_per_layer: patterns of widths, each with a share or a number of units.
        scope: ``"inner"`` or ``"all"``.
        only: patterns of the widths to prune; None for all.
        skip: patterns of widths to leave.
        method: how units are chosen.
    """

    keep: float
    keep_per_layer: dict[str, float | int]
    scope: str
    only: list[str] | None
    skip: list[str]
    method: str

    def chosen(self, widths: list[Width], notes: list[str]) -> list[Width]:
        """The widths to prune, front to back.

        Args:
            widths: of the model.
            notes: gets a line for every reason why widths are left whole that are not left out by ``only`` or ``skip``.
        """
        for name, patterns in (("only", self.only or ()), ("skip", self.skip), ("keep_per_layer", self.keep_per_layer)):
            for pattern in patterns:
                if not any(matches(width, pattern) for width in widths):
                    known = ", ".join(width.name for width in widths[:8])
                    raise ValueError(f"{name}: {pattern!r} matches no width; the model's are {known or 'none'}")
        asked = [
            width
            for width in widths
            if (self.only is None or any(matches(width, pattern) for pattern in self.only))
            and not any(matches(width, pattern) for pattern in self.skip)
        ]
        reasons = {width.name: self._left(width) for width in asked}
        left = {width.name + where: f"left whole: {why}" for width in asked for where, why in reasons[width.name]}
        notes += grouped(left, "widths")
        return sorted((width for width in asked if not reasons[width.name]), key=lambda width: width.order)

    def _left(self, width: Width) -> list[tuple[str, str]]:
        """Why a width stays whole, with where in the width that lies; empty if it is pruned."""
        if self.scope != "all" and width.coupled:
            return [("", "a residual stream (what comes behind a reader is added to the units): scope='all' prunes it")]
        for reader, why in width.obstacles().items():
            return [(f" (read by {reader})", f"no new weight for a reader: {why}")]
        if self.method == "ispasp" and len(width.consumers) > 1:
            names = ", ".join(consumer.module for consumer in width.consumers)
            return [("", f"method='ispasp' takes widths with one reader, got {names}")]
        return []

    def count(self, width: Width) -> int:
        """Units of a width to keep."""
        keep: float | int = self.keep
        for pattern, own in self.keep_per_layer.items():
            if matches(width, pattern):
                keep = own
                break
        sets = unit_sets(width)
        number = 1 if sets is None else int(sets.max()) + 1
        if isinstance(keep, int):
            if not 1 <= keep <= width.units or keep % number:
                each = f", a multiple of {number}" if number > 1 else ""
                raise ValueError(f"keep_per_layer: {width.name}: expected 1 to {width.units}{each}, got {keep}")
            return keep
        check_share(f"keep_per_layer: {width.name}", keep)
        return max(1, math.floor(keep * (width.units // number) + 1e-9)) * number


def matches(width: Width, pattern: str) -> bool:
    """Whether a pattern means a width: by its name, its kind or the name of a producer."""
    return any(fnmatchcase(name, pattern) for name in (width.name, width.kind, *width.producers))


def check_one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise ValueError unless the value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_share(name: str, value: Any) -> None:
    """Raise ValueError unless the value is a number in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(f"{name}: expected a share in (0, 1], got {value!r}")


def as_patterns(name: str, patterns: Sequence[str] | None) -> list[str] | None:
    """A list of patterns; TypeError for a single string."""
    if isinstance(patterns, str):
        raise TypeError(f"{name}: expected a list of patterns, got {patterns!r}")
    return None if patterns is None else list(patterns)
