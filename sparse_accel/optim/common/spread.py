"""Steps of groups that lie over several tensors, of which some are sharded (DTensors).

Nothing is brought together: every process steps on its parts, where they are, and the proximal operator takes the norms
of the units (RAMDA and ProxAdamW: the sums of their scalar roots) over the rows of all members and all processes, see
:mod:`sparse_accel.groups.spread`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_accel.groups.coupled import CoupledWidth
from sparse_accel.groups.spread import Spread, rows_of, wide
from sparse_accel.optim._batch import Batch
from sparse_accel.penalties import penalty_from_plain
from sparse_accel.sharding import local_part


def takes_part(name: str, members: Sequence[tuple[str, bool]], steps: bool) -> bool:
    """Whether the parameters of a width take part; RuntimeError where some do and others do not.

    Args:
        name: of the width.
        members: the name of each parameter, and whether it takes part.
        steps: whether a step is taken.
    """
    absent = [label for label, here in members if not here]
    if absent and len(absent) < len(members):
        why = "no gradient" if steps else "no step yet, or is frozen"
        other = next(label for label, here in members if here)
        raise RuntimeError(
            f"coupled: {name}: the parameter {absent[0]} has {why}, but {other} of the same groups takes part: they "
            "take steps together (freeze all of them or none)"
        )
    return not absent


def join(optimizer: Any, group: dict[str, Any], batches: Sequence[Batch], steps: bool) -> list[Batch]:
    """The parameters of a coupled group that take part as one batch, whose groups lie across its tensors.

    Args:
        optimizer: of the group.
        group: of it; some of its parameters are sharded.
        batches: its parameters that take part.
        steps: whether a step is taken.

    Raises:
        RuntimeError: of a width some parameters take part and others do not; or they lie on several devices, or are
            float64 and of other precisions; or one is a partial sum.
        ValueError: parameters are sharded over meshes that do not go together.
    """
    penalty = penalty_from_plain(group["penalty"])
    if penalty is None or not batches:
        return list(batches)
    found = Batch()
    for name in ("params", "homes", "work", "grads"):
        setattr(found, name, list(itertools.chain(*(getattr(batch, name) for batch in batches))))
    numbers = {id(param): number for number, param in enumerate(group["params"])}
    keys = [numbers[id(param)] for param in found.params]
    spread: Spread = optimizer._couplings.spread(group)
    names = group.get("param_names") or [f"that of shape {tuple(param.shape)}" for param in group["params"]]
    for width in spread.widths:
        own = [int(member.parameter) for member in width.members]
        takes_part(width.name, [(names[number], number in keys) for number in own], steps)
    dtypes = sorted({str(work.dtype).removeprefix("torch.") for work in found.work})
    if len({work.device for work in found.work}) > 1 or ("float64" in dtypes and len(dtypes) > 1):
        devices = sorted({str(work.device) for work in found.work})
        raise RuntimeError(
            f"coupled: expected sharded parameters on one device of a process, and of float64 all or none, got "
            f"{', '.join(devices)} and {', '.join(dtypes)}"
        )
    dtype = found.work[0].dtype
    for work in found.work:  # one dtype, as multi-tensor ops want it
        dtype = torch.promote_types(dtype, work.dtype)
    found.work = [work.to(dtype).contiguous() for work in found.work]
    found.grads = [grad.to(dtype) for grad in found.grads]
    found.joins = spread.joins(keys)
    found.layouts = found.joins.layouts
    found.strengths = [penalty.strength] * len(keys)
    found.sizes = [0] * len(keys)
    return [found]


def unit_norms(
    batch: Batch, points: Sequence[Tensor], kind: str, costs: Sequence[float] | None
) -> list[tuple[CoupledWidth, int, Tensor, float]]:
    """Of every width of a joined batch: the number of a member in the batch, the norms (or largest magnitudes,
    ``"amax"``) of its units, on all processes, and the multiplications by one of their weights, on average.

    Args:
        batch: of :func:`join`.
        points: as its tensors.
        kind: ``"l2"`` or ``"amax"``.
        costs: multiplications by one element of each parameter of the group; None: 1.
    """
    joins = batch.joins
    rows = [rows_of(point, layout).to(wide(point.device)) for point, layout in zip(points, joins.layouts, strict=True)]
    if kind == "amax":
        norms = joins.of_widths([row.abs().amax(1) if row.numel() else row.new_zeros(len(row)) for row in rows], True)
    else:
        squares = joins.of_widths([row.square().sum(1) for row in rows])
        norms = {number: total.sqrt() for number, total in squares.items()}
    found = []
    for number, own in norms.items():
        width: CoupledWidth = joins.spread.widths[number]
        places = [joins.keys.index(member.parameter) for member in width.members]
        each = [
            member.each
            * batch.params[place].numel()
            // (batch.params[place].shape[member.dim] * max(1, member.experts))
            for member, place in zip(width.members, places, strict=True)
        ]
        cost = 1.0
        if costs is not None and any(each):
            pairs = zip(width.members, each, strict=True)
            cost = sum(count * costs[int(member.parameter)] for member, count in pairs) / sum(each)
        found.append((width, places[0], own, cost))
    return found


@torch.no_grad()
def spread_value(group: dict[str, Any], spread: Spread) -> float:
    """The penalty of a coupled parameter group with sharded parameters (synchronizes with the device)."""
    penalty = penalty_from_plain(group["penalty"])
    if penalty is None:
        return 0.0
    keys = list(dict.fromkeys(int(member.parameter) for width in spread.widths for member in width.members))
    joins = spread.joins(keys)
    parts = [local_part(group["params"][key].detach()) for key in keys]
    hard = penalty.prox_name == "hard"
    rows = [rows_of(part, lay).to(wide(part.device)) for part, lay in zip(parts, joins.layouts, strict=True)]
    found = joins.of_widths([(row != 0).sum(1) if hard else row.square().sum(1) for row in rows])
    total = 0.0
    for number, own in found.items():
        size = spread.widths[number].size
        total += size * int((own != 0).sum()) if hard else size**0.5 * float(own.sqrt().sum())
    return penalty.strength * total
