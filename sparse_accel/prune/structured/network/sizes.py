"""How many units each width keeps: as asked for, within a budget, and the same ones of widths of the same size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sparse_accel.calibration.replay.engine import Engine
from sparse_accel.channels.widths import Width, grouped
from sparse_accel.prune.structured.budget import allocate
from sparse_accel.prune.structured.cost import first_units
from sparse_accel.prune.structured.layer import Settings
from sparse_accel.prune.structured.request import Request, matches
from sparse_accel.prune.structured.sites import Site
from sparse_accel.removal.configs import UNSAID, has_rebuilt
from sparse_accel.removal.remove import remove_units


def alike(widths: Sequence[Width]) -> list[list[Width]]:
    """Widths of one kind and size, residual streams apart, in order."""
    groups: dict[tuple[str, int, bool], list[Width]] = {}
    for width in widths:
        groups.setdefault((width.kind, width.units, width.coupled), []).append(width)
    return list(groups.values())


def agreed(
    request: Request, found: Sequence[Width], widths: Sequence[Width], model: nn.Module, example: Any, notes: list[str]
) -> list[Width]:
    """The widths of which all of the same size can be pruned alike, so that a configuration describes the result.

    Args:
        request: with ``uniform``.
        found: all widths of the model.
        widths: those that would be pruned.
        model: with them.
        example: of the analysis.
        notes: gets a line for every reason why widths are left whole.

    Raises:
        ValueError: the caller asked for some widths of a size and not for others, or for different numbers.
    """
    names = {width.name for width in widths}
    reasons: dict[str, str] = {}
    for group in alike(found):
        mine = [width for width in group if width.name in names]
        if not mine:
            continue
        others = [width for width in group if width.name not in names]
        unasked = [width.name for width in others if not request.asks_for(width)]
        if unasked:
            raise ValueError(
                f"uniform: expected only and skip to take all {len(group)} {group[0].kind} widths of {group[0].units} "
                f"units or none, got {mine[0].name} without {unasked[0]}"
            )
        why = f"uniform=True, and {others[0].name} of the same size stays" if others else ""
        why = why or _unsaid(mine, same_count(request, mine), model, example)
        reasons |= {width.name: f"left whole: {why}" for width in mine if why}
    notes += grouped(reasons, "widths")
    return [width for width in widths if width.name not in reasons]


def _unsaid(group: Sequence[Width], count: int, model: nn.Module, example: Any) -> str:
    """Why no configuration describes a model whose widths of one size are cut alike; empty if one does."""
    if count == group[0].units or not has_rebuilt(model):
        return ""
    kept = {width.name: first_units(width, count) for width in group}
    plan = remove_units(model, example, kept, verify=False).plan
    said = [note for note in plan["notes"] if UNSAID in note]
    return f"uniform=True, and no configuration says {count} of {group[0].units} {group[0].kind}" if said else ""


def same_count(request: Request, group: Sequence[Width]) -> int:
    """Units that each width of one size keeps.

    Raises:
        ValueError: ``keep_per_layer`` asks for different numbers.
    """
    counts = {width.name: request.count(width) for width in group}
    if len(set(counts.values())) == 1:
        return next(iter(counts.values()))
    given = {name: counts[name] for name in counts if _is_given(request, group, name)}
    if given:
        low, high = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        raise ValueError(
            f"keep_per_layer: with uniform=True expected one number for widths of {group[0].units} units, got "
            f"{counts[low]} for {low} and {counts[high]} for {high}"
        )
    step = same_step(request, group)
    return min(group[0].units, -(-max(counts.values()) // step) * step)


def _is_given(request: Request, group: Sequence[Width], name: str) -> bool:
    (width,) = (one for one in group if one.name == name)
    return any(matches(width, pattern) for pattern in request.keep_per_layer)


def same_step(request: Request, group: Sequence[Width]) -> int:
    """The number of which each width of one size keeps a multiple."""
    return math.lcm(*(request.step(width) for width in group))


def keeps(
    request: Request,
    budget: Mapping[str, float] | None,
    widths: Sequence[Width],
    engine: Engine,
    example: Any,
    sites: Mapping[str, Site],
    settings: Settings,
) -> dict[str, int]:
    """Units to keep of each width.

    Raises:
        ValueError: numbers that a width cannot keep, or a budget that cannot be met.
    """
    groups = alike(widths) if request.uniform else [[width] for width in widths]
    counts = {width.name: same_count(request, group) for group in groups for width in group}
    if budget is None or not widths:
        return counts
    steps = {width.name: same_step(request, group) for group in groups for width in group}
    fixed = {name: counts[name] for group in groups for name in counts if _is_fixed(request, group, name)}
    names = [[width.name for width in group] for group in groups if len(group) > 1]
    return allocate(budget, widths, fixed, steps, engine, example, sites, settings, names)


def _is_fixed(request: Request, group: Sequence[Width], name: str) -> bool:
    """Whether a width is in a group for which a number was given."""
    return any(width.name == name for width in group) and any(_is_given(request, group, w.name) for w in group)
