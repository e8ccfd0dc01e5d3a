"""Entries of several parameters brought together in one matrix with a row for each unit, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_accel.groups.coupled import ENTRY, CoupledWidth, Member, check_coupled
from sparse_accel.groups.spread import Spread
from sparse_accel.sharding import local_part

_AT_ONCE = 1 << 22  # elements that are brought together at once, if they are of several parameters


@dataclasses.dataclass(frozen=True)
class Piece:
    """Entries of one parameter, as columns of a matrix."""

    number: int  # of the parameter in its group
    member: Member
    units: int
    at: Tensor | None  # positions in the dimension; None: all, in order
    columns: int  # elements of each unit

    def apart(self, matrix: Tensor, first: int, rest: Sequence[int]) -> Tensor:
        """The columns from ``first`` on, [experts, units, each, *rest]: a view."""
        stacked = max(1, self.member.experts)
        own = matrix.unflatten(0, (stacked, self.units // stacked)).narrow(2, first, self.columns)
        return own.unflatten(2, (self.member.each, *rest))

    def take(self, tensor: Tensor, matrix: Tensor, first: int) -> None:
        """Copy the tensor's entries into the matrix."""
        entries = self.member.entries(tensor)
        own = self.apart(matrix, first, entries.shape[2:])
        chosen = entries if self.at is None else entries.index_select(1, self.at)
        own.copy_(chosen.unflatten(1, own.shape[1:3]))

    def give(self, tensor: Tensor, matrix: Tensor, first: int) -> None:
        """Copy them back."""
        entries = self.member.entries(tensor)
        own = self.apart(matrix, first, entries.shape[2:])
        if self.at is None:
            entries.unflatten(1, own.shape[1:3]).copy_(own)
        else:
            entries.index_copy_(1, self.at, own.flatten(1, 2).to(tensor.dtype))


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The pieces that make one matrix [units, columns]."""

    name: str
    units: int
    size: int  # elements that the penalty takes a group for; more than there are after a removal
    pieces: tuple[Piece, ...]
    penalized: bool = True

    @property
    def columns(self) -> int:
        """Elements of each unit that are there."""
        return sum(piece.columns for piece in self.pieces)

    def take(self, tensors: Sequence[Tensor | None], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The matrix of some tensors, by the parameters' numbers."""
        matrix = torch.empty((self.units, self.columns), dtype=dtype, device=device)
        self._each(lambda piece, first: piece.take(there(tensors[piece.number]), matrix, first))
        return matrix

    def give(self, tensors: Sequence[Tensor | None], matrix: Tensor) -> None:
        """Copy a matrix back into the tensors."""
        self._each(lambda piece, first: piece.give(there(tensors[piece.number]), matrix, first))

    def _each(self, do: Callable[[Piece, int], None]) -> None:
        first = 0
        for piece in self.pieces:
            do(piece, first)
            first += piece.columns


def there(tensor: Tensor | None) -> Tensor:
    """The tensor: of a matrix all members take part, or none."""
    assert tensor is not None
    return tensor


class Couplings:
    """Of one optimizer: how the members of its coupled groups are brought together."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, tuple[Any, ...], list[list[Matrix]]]] = {}
        self._spread: dict[int, tuple[Any, tuple[Any, ...], Spread]] = {}

    def of(self, group: dict[str, Any]) -> list[list[Matrix]]:
        """The matrices of a parameter group, in lots; found anew where its entry, shapes or devices have changed."""
        params = group["params"]
        facts = tuple((param.shape, param.device) for param in params)
        known = self._known.get(id(group))
        if known is None or known[0] is not group[ENTRY] or known[1] != facts:
            widths = check_coupled(group[ENTRY], params, group.get("param_names"))
            known = self._known[id(group)] = (group[ENTRY], facts, _lots(_matrices(widths, params)))
        return known[2]

    def spread(self, group: dict[str, Any]) -> Spread:
        """Where the units of a parameter group with sharded parameters lie; found anew as in :meth:`of`."""
        params = group["params"]
        facts = tuple((p.shape, local_part(p).shape, p.device, getattr(p, "placements", None)) for p in params)
        known = self._spread.get(id(group))
        if known is None or known[0] is not group[ENTRY] or known[1] != facts:
            widths = check_coupled(group[ENTRY], params, group.get("param_names"))
            spread = Spread(widths, dict(enumerate(params)))
            known = self._spread[id(group)] = (group[ENTRY], facts, spread)
        return known[2]


def _lots(matrices: Sequence[Matrix]) -> list[list[Matrix]]:
    """Matrices that have a parameter in common together, and small ones."""
    joined: list[tuple[set[int], list[Matrix]]] = []
    for matrix in matrices:
        numbers, own = {piece.number for piece in matrix.pieces}, [matrix]
        for other in [one for one in joined if one[0] & numbers]:
            joined.remove(other)
            numbers, own = numbers | other[0], other[1] + own
        joined.append((numbers, own))
    lots: list[list[Matrix]] = []
    filled = _AT_ONCE
    for _, own in joined:
        count = sum(matrix.units * matrix.columns for matrix in own)
        if filled + count > _AT_ONCE:
            lots.append([])
            filled = 0
        lots[-1] += own
        filled += count
    return lots


def _matrices(widths: Sequence[CoupledWidth], params: Sequence[Tensor]) -> list[Matrix]:
    found: list[Matrix] = []
    owned: dict[int, tuple[Member, set[int]]] = {}
    for width in widths:
        pieces = []
        for member in width.members:
            number = int(member.parameter)
            shape = params[number].shape
            length = shape[member.dim]
            own = owned.setdefault(number, (member, set(range(length))))
            own[1].difference_update(range(length) if member.at is None else member.at)
            pieces.append(_piece(number, member, width.units, params[number]))
        found.append(Matrix(width.name, width.units, width.size, tuple(pieces)))
    for number, (member, left) in owned.items():
        if left:
            rest = dataclasses.replace(member, each=len(left), at=tuple(sorted(left)))
            piece = _piece(number, rest, max(1, member.experts), params[number])
            found.append(Matrix("", piece.units, piece.columns, (piece,), penalized=False))
    return found


def _piece(number: int, member: Member, units: int, param: Tensor) -> Piece:
    entries = param.shape[member.dim] * max(1, member.experts)
    at = None if member.at is None else torch.tensor(member.at, device=param.device)
    return Piece(number, member, units, at, member.each * (param.numel() // max(1, entries)))
