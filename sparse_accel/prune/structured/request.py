"""Which widths of a model are pruned, and how many of their units are kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from sparse_accel.calibration.batches import Batches
from sparse_accel.calibration.data import Calibration, device_of, eval_mode
from sparse_accel.calibration.observations import Observations, floating
from sparse_accel.calibration.ranks import of_all, together
from sparse_accel.calibration.shapes import Shapes, without_values
from sparse_accel.calibration.survey import Survey, survey
from sparse_accel.channels.call import run_model
from sparse_accel.channels.graph import CompactError, UnsupportedModelError
from sparse_accel.channels.runs import Examples
from sparse_accel.channels.widths import Width, grouped
from sparse_accel.prune.structured.choose import unit_sets
from sparse_accel.prune.structured.sites import Site

logger = logging.getLogger("sparse_accel")

REFITS = ("auto", None, "bias", "local", "dense", "skip")


class PruneError(CompactError, ValueError):
    """A width cannot be pruned as asked; the message names it. The model is as it was."""


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
        round_to: sizes of layers that shares and budgets lead to are multiples of it, rounded up.
        uniform: widths of one kind and size keep equally many units.
    """

    keep: float
    keep_per_layer: dict[str, float | int]
    scope: str
    only: list[str] | None
    skip: list[str]
    method: str
    round_to: int = 1
    uniform: bool = False

    def chosen(self, widths: list[Width], notes: list[str]) -> list[Width]:
        """The widths to prune, front to back.

        Args:
            widths: of the model.
            notes: gets a line for every reason why widths are left whole that are not left out by ``only`` or ``skip``.
        """
        for name, patterns in (("only", self.only or ()), ("skip", self.skip), ("keep_per_layer", self.keep_per_layer)):
            for pattern in patterns:
                if not any(matches(width, pattern) for width in widths):
                    refuse_head_size(name, pattern)
                    known = ", ".join(width.name for width in widths[:8])
                    raise ValueError(f"{name}: {pattern!r} matches no width; the model's are {known or 'none'}")
        asked = [width for width in widths if self.asks_for(width)]
        reasons = {width.name: self._left(width) for width in asked}
        left = {width.name + where: f"left whole: {why}" for width in asked for where, why in reasons[width.name]}
        notes += grouped(left, "widths")
        return sorted((width for width in asked if not reasons[width.name]), key=lambda width: width.order)

    def asks_for(self, width: Width) -> bool:
        """Whether ``only`` and ``skip`` leave a width in."""
        only = self.only is None or any(matches(width, pattern) for pattern in self.only)
        return only and not any(matches(width, pattern) for pattern in self.skip)

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
        count = math.floor(keep * (width.units // number) + 1e-9)
        if self.round_to == 1:
            return max(width.granule, count // width.granule * width.granule) * number
        step = self.step(width)
        return min(width.units, -(-max(1, count) * number // step) * step)

    def step(self, width: Width) -> int:
        """The number of units of which a width keeps a multiple.

        With it there are equally many of each set, whole granules, and ``round_to`` channels of every layer that makes
        or reads them.
        """
        sets = unit_sets(width)
        sizes = {rows.shape[1] for rows in width.rows.values()} or {1}  # a stack's neurons are entries themselves
        sizes |= {consumer.channels.shape[1] for consumer in width.consumers}
        steps = (self.round_to // math.gcd(self.round_to, size) for size in sizes)
        return math.lcm(1 if sets is None else int(sets.max()) + 1, width.granule, *steps)


def matches(width: Width, pattern: str) -> bool:
    """Whether a pattern means a width: by its name, its kind or the name of a producer."""
    return any(fnmatchcase(name, pattern) for name in (width.name, width.kind, *width.producers))


_HEAD_SIZES = ("head_dim", "head_size", "attention_head_size", "d_kv", "dim_head", "key_length")


def refuse_head_size(name: str, pattern: str) -> None:
    """Raise ValueError where a pattern asks for the size of heads, which nothing here prunes."""
    if pattern.strip("*.").rpartition(".")[2] in _HEAD_SIZES:
        raise ValueError(
            f"{name}: {pattern!r}: the size of heads is not pruned (queries and keys are compared over all of it, "
            "rotary embeddings pair its entries): expected whole heads, the kind 'heads'"
        )


def check_one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise ValueError unless the value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_share(name: str, value: Any) -> None:
    """Raise ValueError unless the value is a number in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(f"{name}: expected a share in (0, 1], got {value!r}")


def check_budget(budget: Mapping[str, float] | None) -> None:
    """Refuse a budget that is not of one known cost.

    Raises:
        ValueError: it is not; the message says what was expected.
    """
    if budget is not None and (
        len(budget) != 1 or next(iter(budget)) not in ("flops", "params", "units", "latency_ms")
    ):
        raise ValueError(f"budget: expected one of flops, params, units and latency_ms, got {dict(budget)}")
    if budget is not None and "latency_ms" not in budget:
        check_share("budget: " + next(iter(budget)), next(iter(budget.values())))


def check_least(name: str, value: int | None, least: int) -> None:
    """Refuse numbers that are too small.

    Raises:
        ValueError: the number is below ``least``.
    """
    if value is not None and value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def check_multiple(name: str, value: Any) -> None:
    """Raise ValueError unless the value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")


def check_tolerance(name: str, value: Any) -> None:
    """Raise ValueError unless the value is a number of at least 0 or None."""
    if value is not None and not (isinstance(value, (int, float)) and value >= 0):
        raise ValueError(f"{name}: expected a number of at least 0 or None, got {value!r}")


def as_patterns(name: str, patterns: Sequence[str] | None) -> list[str] | None:
    """A list of patterns; TypeError for a single string."""
    if isinstance(patterns, str):
        raise TypeError(f"{name}: expected a list of patterns, got {patterns!r}")
    return None if patterns is None else list(patterns)


@dataclass
class Findings:
    """What the calibration data show of a model that its example does not.

    Attributes:
        more: modules that batches call more often than the example does, with a reason to leave their widths.
        unvisited: modules with parameters that batches call and the example does not.
        order: of the modules that every batch (of this rank) calls exactly once, when the first batch did.
    """

    more: dict[str, str]
    unvisited: list[str]
    order: dict[nn.Module, list[int]]

    def safe(self, widths: list[Width], notes: list[str]) -> list[Width]:
        """The widths that the analysis of the example holds for; the others are noted."""
        out = []
        for width in widths:
            modules = [*width.producers, *(consumer.module for consumer in width.consumers), *width.inner]
            reasons = [self.more[name] for name in modules if name in self.more]
            if reasons:
                notes.append(f"{width.name}: left whole: {reasons[0]}")
            else:
                out.append(width)
        return out


def look(
    work: nn.Module, data: Batches, example_inputs: Any, sites: Mapping[str, Site], *, values: bool = True
) -> Findings:
    """One pass over the data: how often batches call what, which positions count, which samples go where.

    Args:
        work: the model.
        data: learns which positions count.
        example_inputs: of the analysis.
        sites: of the linear maps; what all batches of all ranks have in common is noted in them.
        values: run the model on the data; without it shapes alone are computed, where that tells as much.
    """
    modules = {name: work.get_submodule(name) for name in sites}
    with together(device_of(work) or torch.device("cpu")):
        plain = survey(work, Calibration(list(Examples.of(example_inputs).single())))
        found, shapes, seen = _shown(work, data, modules, values=values)
        data.padding.learn(work, seen)
    routed = shapes.varying
    more: dict[str, str] = {}
    unvisited: list[str] = []
    for name, module in work.named_modules():
        most, usual = found.most[module], plain.most[module]
        if most > usual > 0:
            more[name] = f"a batch calls {name} {most} times, example_inputs {usual} times"
        elif most > usual and any(True for _ in module.parameters(recurse=False)):
            unvisited.append(name)
    counts = {name: {found.least[module], found.most[module]} for name, module in modules.items()}
    ranks = of_all((counts, routed, more, unvisited))
    for name, site in sites.items():
        every = set().union(*(rank[0][name] for rank in ranks))
        site.calls = every.pop() if len(every) == 1 else 0
        site.routed = any(name in rank[1] for rank in ranks)
    joined = {name: reason for rank in reversed(ranks) for name, reason in rank[2].items()}
    return Findings(joined, sorted({name for rank in ranks for name in rank[3]}), found.once())


def _shown(
    work: nn.Module, data: Batches, modules: Mapping[str, nn.Module], *, values: bool
) -> tuple[Survey, Shapes, Observations]:
    """The calls of all modules, and the inputs that some are shown."""
    shapes, seen = Shapes(modules), Observations(data.padding, modules)
    found: Survey | None

    def begin(batch: Any) -> None:
        shapes.begin(batch)
        seen.begin(batch)

    with shapes.watching(), seen.watching(work):  # a copy has these hooks, too
        if values:
            found = survey(work, data, begin)
        else:
            try:
                found = survey(without_values(work), data, begin, shapes_of=work)
            except Exception as error:  # a real fault shows again below
                logger.info("the calls of the modules depend on values: %s: %s", type(error).__name__, error)
                found = None
    if found is None:
        return _shown(work, data, modules, values=True)
    shapes.end()
    return found, shapes, seen


def check_unvisited(small: nn.Module, work: nn.Module, data: Batches, unvisited: Sequence[str]) -> None:
    """Run the smaller model where the analysis could not look.

    Args:
        small: the smaller model.
        work: the model with zeros in place of what is gone.
        data: the batches.
        unvisited: modules that the example does not call.

    Raises:
        UnsupportedModelError: it does not run, or computes something else.
    """
    hint = f"example_inputs call none of {', '.join(unvisited[:4])}: give an example that does"
    with torch.no_grad(), eval_mode(small), eval_mode(work):
        for batch in data.batches(device_of(work)):
            wanted = floating(run_model(work, batch))
            try:
                came = floating(run_model(small, batch))
            except Exception as error:
                raise UnsupportedModelError(
                    f"the smaller model does not run on the calibration data: {hint}"
                ) from error
            for one, other in zip(wanted, came, strict=True):
                size = float(one.abs().max())
                if one.shape != other.shape or not torch.allclose(one, other, rtol=1e-3, atol=1e-3 * size):
                    raise UnsupportedModelError(f"the smaller model differs on the calibration data: {hint}")
