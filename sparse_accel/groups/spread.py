"""Coupled units whose weights lie on several processes (DTensors): which of their rows are here, and sums over all.

A *row* is what a parameter has at one index of its coupled dimension, as much of it as this process holds. Rows stay
where they are; numbers of rows (squares, largest magnitudes) are summed to numbers of units, here and by one all-reduce
for all widths together. Nothing gathers a weight.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_accel.groups.coupled import CoupledWidth, Member
from sparse_accel.groups.layouts import GroupLayout
from sparse_accel.sharding import is_sharded, local_index, local_part, sharding_ranks


@dataclasses.dataclass(frozen=True)
class _Place:
    """The part of a parameter that is here."""

    layout: GroupLayout  # of its contiguous memory: a group is a row
    slots: Tensor  # of each row the number of its unit among all; behind the last one: of none
    counts: bool  # whether its numbers count here: of copies on several processes one does


class Spread:
    """The units of some widths, and where their rows are.

    Args:
        widths: checked (:func:`sparse_accel.groups.coupled.check_coupled`).
        tensors: the members' parameters, by the names or numbers that the members have; DTensors, or plain tensors,
            which every process has alike. All processes have to make it.

    Raises:
        ValueError: the parameters are sharded over meshes of which none has all dimensions of the others.
        RuntimeError: one is a partial sum.
    """

    def __init__(self, widths: Sequence[CoupledWidth], tensors: Mapping[Any, Tensor]) -> None:
        self.widths = list(widths)
        self._first = [0]
        for width in self.widths:
            self._first.append(self._first[-1] + width.units)
        members: dict[Any, list[tuple[int, int, Member]]] = {}
        for first, width in zip(self._first, self.widths, strict=False):
            for member in width.members:
                members.setdefault(member.parameter, []).append((first, width.units, member))
        over = {key: sharding_ranks(tensors[key]) for key in members}
        self.processes, counting = _processes(over, {key: tensors[key] for key in members})
        self._places = {
            key: self._place(tensors[key], own, all(counting[ranks] for ranks in counting if ranks not in over[key]))
            for key, own in members.items()
        }
        self._orders: dict[tuple[Hashable, ...], tuple[Tensor, Tensor]] = {}

    @property
    def units(self) -> int:
        """Of all widths."""
        return self._first[-1]

    def _place(self, tensor: Tensor, members: Sequence[tuple[int, int, Member]], counts: bool) -> _Place:
        member, shape = members[0][2], local_part(tensor).shape
        dim, stacked = member.dim, max(1, member.experts)
        table = torch.full((stacked, tensor.shape[dim]), self.units, device="cpu")
        for first, units, one in members:
            at = torch.arange(tensor.shape[dim], device="cpu") if one.at is None else torch.tensor(one.at, device="cpu")
            numbers = torch.arange(units * one.each, device="cpu").div(one.each, rounding_mode="floor")
            table[:, at] = first + numbers.reshape(stacked, -1)
        if member.experts:
            table = table[local_index(tensor, 0).cpu()]
        table = table[:, local_index(tensor, dim).cpu()]
        inside = (math.prod(shape[bool(member.experts) : dim]), shape[dim], math.prod(shape[dim + 1 :]))
        layout = GroupLayout(*inside, blocks=shape[0] if member.experts else 1)
        return _Place(layout, table.reshape(-1).to(local_part(tensor).device), counts)

    def joins(self, keys: Sequence[Hashable]) -> Joins:
        """Of these parameters, in this order."""
        return Joins(self, tuple(keys), [self._places[key] for key in keys])

    def order(self, keys: tuple[Hashable, ...]) -> tuple[Tensor, Tensor]:
        """How the rows of parameters, one after the other, come to lie unit by unit, and how many each unit has."""
        if keys not in self._orders:
            slots = torch.cat([self._places[key].slots for key in keys])
            self._orders[keys] = slots.argsort(stable=True), slots.bincount(minlength=self.units + 1)
        return self._orders[keys]

    def present(self, keys: Sequence[Hashable]) -> list[int]:
        """The numbers of the widths whose parameters are all among these."""
        here = set(keys)
        return [i for i, width in enumerate(self.widths) if all(member.parameter in here for member in width.members)]

    def split(self, numbers: Tensor) -> list[Tensor]:
        """Numbers of all units, width by width."""
        return [numbers[first:last] for first, last in zip(self._first, self._first[1:], strict=False)]


class Joins:
    """The rows of some parameters of a :class:`Spread`, as steps and counts need them.

    Attributes:
        layouts: of each parameter's part here, in contiguous memory: its groups are its rows.
        sizes: of each, how many elements the penalty takes the unit of a row for, float64 ``[rows]``; 0 where the row
            belongs to none.
    """

    def __init__(self, spread: Spread, keys: tuple[Hashable, ...], places: Sequence[_Place]) -> None:
        self.spread, self.keys, self._places = spread, keys, places
        self.layouts = [place.layout for place in places]
        sizes = [float(width.size) for width in spread.widths for _ in range(width.units)]
        device = places[0].slots.device
        self.sizes = [
            torch.tensor([*sizes, 0.0], dtype=wide(device), device="cpu").to(device)[place.slots] for place in places
        ]

    def of_units(self, values: Sequence[Tensor], largest: bool = False, extra: Tensor | None = None) -> Tensor:
        """Numbers of all rows summed to numbers of the units, on all processes the same.

        Args:
            values: ``[rows]`` or ``[rows, numbers]`` of each parameter.
            largest: the largest (0 at least) instead of the sum.
            extra: ``[1]``, one number more, summed over the processes alone.

        Returns:
            ``[units + 1, numbers]``, the last for all that belongs to none; with ``extra`` one row more.
        """
        counted = [
            value if place.counts or largest else torch.zeros_like(value)
            for value, place in zip(values, self._places, strict=True)
        ]
        order, lengths = self.spread.order(self.keys)
        rows = torch.cat([value.reshape(value.shape[0], -1) for value in counted])
        rows = rows.to(wide(rows.device))[order]
        kind = "max" if largest else "sum"
        found = torch.segment_reduce(rows, kind, lengths=lengths, unsafe=True, initial=0.0)
        if extra is not None:
            found = torch.cat([found, extra.to(found).reshape(1, 1).expand(1, found.shape[1])])
        for group in self.spread.processes:
            kinds = torch.distributed.ReduceOp
            torch.distributed.all_reduce(found, kinds.MAX if largest else kinds.SUM, group=group)
        return found

    def apart(self, found: Tensor) -> list[Tensor]:
        """What :meth:`of_units` returns, for the rows of each parameter ``[rows, numbers]``."""
        return [found[place.slots] for place in self._places]

    def sums(self, values: Sequence[Tensor], extra: Tensor | None = None) -> tuple[list[Tensor], Tensor | None]:
        """Numbers of each row's unit, from those of its rows, and the sum of ``extra`` over the processes."""
        found = self.of_units(values, extra=extra)
        return self.apart(found), None if extra is None else found[-1, :1]

    def largest(self, values: Sequence[Tensor]) -> list[Tensor]:
        """As :meth:`sums`, of the largest."""
        return self.apart(self.of_units(values, largest=True))

    def of_widths(self, values: Sequence[Tensor], largest: bool = False) -> dict[int, Tensor]:
        """As :meth:`of_units`, one number a row, for every width whose parameters are all here: by its number."""
        parts = self.spread.split(self.of_units(values, largest)[:, 0])
        return {number: parts[number] for number in self.spread.present(self.keys)}


def nonzero_of(widths: Sequence[CoupledWidth], tensors: Mapping[Any, Tensor]) -> list[Tensor]:
    """How many weights of each unit are not zero, int64 ``[units]`` of each width; arguments as for :class:`Spread`."""
    spread = Spread(widths, tensors)
    keys = list(dict.fromkeys(member.parameter for width in widths for member in width.members))
    joins = spread.joins(keys)
    parts = [local_part(tensors[key]).detach() for key in keys]
    counts = [rows_of(part.ne(0), layout).sum(1) for part, layout in zip(parts, joins.layouts, strict=True)]
    found = joins.of_widths(counts)
    return [found[number].round().long() for number in range(len(widths))]


def rows_of(tensor: Tensor, layout: GroupLayout) -> Tensor:
    """The rows of a tensor in contiguous memory, ``[rows, elements]``."""
    outer, groups, inner, blocks = layout
    return tensor.reshape(blocks, outer, groups, inner).transpose(1, 2).reshape(blocks * groups, outer * inner)


def any_sharded(tensors: Mapping[Any, Tensor], widths: Sequence[CoupledWidth]) -> bool:
    """Whether a parameter of a width is a DTensor."""
    return any(is_sharded(tensors[member.parameter]) for width in widths for member in width.members)


def wide(device: torch.device) -> torch.dtype:
    """In which numbers of rows are summed."""
    return torch.float32 if device.type == "mps" else torch.float64


def _processes(
    over: Mapping[Any, Mapping[tuple[int, ...], Any]], tensors: Mapping[Any, Tensor]
) -> tuple[tuple[Any, ...], dict[tuple[int, ...], bool]]:
    """The groups of processes to sum over, and by the ranks of each whether what all of its processes have counts in
    this one."""
    found: dict[tuple[int, ...], Any] = {}
    for groups in over.values():
        found.update({ranks: group for ranks, group in groups.items() if ranks not in found})
    meshes = [
        {tuple(torch.distributed.get_process_group_ranks(group)) for group in mesh.get_all_groups()}
        for mesh in (tensor.device_mesh for tensor in tensors.values() if is_sharded(tensor))  # type: ignore[attr-defined]
    ]
    if found and not any(set(found) <= mesh for mesh in meshes):
        raise ValueError(
            f"coupled: expected parameters that are sharded over one device mesh, or over dimensions of it, got "
            f"{len(found)} groups of processes of several ({', '.join(map(str, sorted(found)))}): give the widths of "
            "each mesh an optimizer of their own (coupled_groups(..., only=...))"
        )
    return tuple(found.values()), {ranks: torch.distributed.get_rank() == min(ranks) for ranks in found}
