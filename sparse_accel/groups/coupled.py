"""Groups over several tensors: all that goes with a unit of a network, as plain data.

A *unit* is a neuron, a channel or an attention head; its group are the weights that make it, the entries of norms that
it passes, and the weights that read it. :func:`sparse_accel.coupled_groups` finds them; here stands what they are, and
how their entries are reached in a tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.groups.costs import multiplications
from sparse_accel.wrappers import bare_model

ENTRY = "coupled"  # of a parameter group: its widths, as plain values


@dataclasses.dataclass(frozen=True)
class Member:
    """The entries of one parameter that belong to the units of a width.

    Attributes:
        parameter: its name; in the parameter groups of an optimizer its number there.
        dim: dimension whose entries the units own.
        each: how many of them each unit owns.
        at: which, unit by unit; None: all of the dimension, in order.
        experts: 0; or, where the parameter is a stack ``[experts, ...]`` of which every matrix has units of its own,
            how many: the units are numbered expert by expert, and ``at`` is of one expert.
    """

    parameter: str | int
    dim: int
    each: int
    at: tuple[int, ...] | None = None
    experts: int = 0

    def entries(self, tensor: Tensor) -> Tensor:
        """The tensor with that dimension second, ``[experts or 1, entries, ...]``: a view."""
        return tensor.movedim(self.dim, 1) if self.experts else tensor.movedim(self.dim, 0).unsqueeze(0)

    def to_plain(self) -> dict[str, Any]:
        """As a dictionary of plain values."""
        return {**vars(self), "at": None if self.at is None else list(self.at)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Member:
        """The way back."""
        at = plain["at"]
        return cls(**{**plain, "at": None if at is None else tuple(at)})


@dataclasses.dataclass(frozen=True)
class CoupledWidth:
    """Units that are alike: the neurons of a layer, the channels between two, the heads of an attention.

    Attributes:
        name: of the width, see :func:`sparse_accel.prune.find_widths`.
        kind: ``"channels"``, ``"heads"`` or ``"experts"``.
        units: how many there are.
        size: elements of the group of each.
        members: the parameters that take part.
    """

    name: str
    kind: str
    units: int
    size: int
    members: tuple[Member, ...]

    def to_plain(self, numbers: Mapping[str, int] | None = None) -> dict[str, Any]:
        """As a dictionary of plain values; parameters by these numbers."""
        members = [
            member if numbers is None else dataclasses.replace(member, parameter=numbers[str(member.parameter)])
            for member in self.members
        ]
        return {**vars(self), "members": [member.to_plain() for member in members]}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> CoupledWidth:
        """The way back."""
        return cls(**{**plain, "members": tuple(Member.from_plain(member) for member in plain["members"])})

    def zero_units(self, tensors: Mapping[Any, Tensor]) -> Tensor:
        """Which units are zero in all members, bool [units].

        Args:
            tensors: the members' parameters, by name or number.
        """
        return self._zeros(tensors) == self.size

    def zeros(self, tensors: Mapping[Any, Tensor]) -> Tensor:
        """How many weights of the units are zero, ``[]`` int64; arguments as for :meth:`zero_units`."""
        return self._zeros(tensors).sum()

    def _zeros(self, tensors: Mapping[Any, Tensor]) -> Tensor:
        """How many weights of each unit are zero, int64 [units]."""
        count = torch.zeros(self.units, dtype=torch.int64, device="cpu")
        for member in self.members:
            entries = member.entries(tensors[member.parameter].detach()).eq(0)
            own = entries.flatten(2).sum(2) if entries.dim() > 2 else entries.long()
            if member.at is not None:
                own = own[:, torch.tensor(member.at, device=own.device)]
            count += own.reshape(self.units, member.each).sum(1).cpu()
        return count


class CoupledGroups(tuple[CoupledWidth, ...]):
    """The coupled groups of a model, width by width; a table when printed. Give it to :func:`sparse_accel.param_groups`
    and to :func:`sparse_accel.sparsity`.

    Attributes:
        refused: why units of some layers have no group: by the name of the width or the layer.

    Example:
        >>> member = Member("fc1.weight", 0, 1)
        >>> print(CoupledGroups([CoupledWidth("fc1", "channels", 8, 3, (member,))]))
        width  kind      units  weights each  members
        fc1    channels  8      3             fc1.weight
    """

    refused: dict[str, str]

    def __new__(cls, widths: Iterable[CoupledWidth], refused: Mapping[str, str] | None = None) -> CoupledGroups:
        """The groups of some widths."""
        self = super().__new__(cls, tuple(widths))
        self.refused = dict(refused or {})
        return self

    def __getnewargs__(self) -> tuple[tuple[CoupledWidth, ...], dict[str, str]]:
        """For copies and pickles."""
        return tuple(self), self.refused

    @property
    def units(self) -> int:
        """Number of groups."""
        return sum(width.units for width in self)

    def __str__(self) -> str:
        rows = [("width", "kind", "units", "weights each", "members")]
        for width in self:
            names = ", ".join(str(member.parameter) for member in width.members)
            rows.append((width.name, width.kind, f"{width.units}", f"{width.size}", names))
        sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, sizes)).rstrip() for row in rows]
        return "\n".join([*lines, *(f"{name or 'model'}: {reason}" for name, reason in self.refused.items())])


def coupled_param_groups(
    model: nn.Module, penalty: Any, coupled: CoupledGroups, example: Any, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What :func:`sparse_accel.param_groups` returns for coupled groups: one parameter group of all members, with the
    penalty and an entry ``"coupled"``, and one of everything else, without.

    Raises:
        TypeError: ``coupled`` is something else.
        ValueError: it has no groups, or names a parameter that the model lacks or has in another shape; or a target is
            of multiplications, and ``example`` is missing.
    """
    if not isinstance(coupled, CoupledGroups):
        raise TypeError(f"coupled: expected what sa.coupled_groups() returns, got {type(coupled).__name__}")
    if not coupled:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in coupled.refused.items())
        raise ValueError(f"coupled: expected groups, got none ({reasons or 'the model has no units'})")
    named: dict[str, nn.Parameter] = dict(bare_model(model, sharded=True).named_parameters())
    members = dict.fromkeys(str(member.parameter) for width in coupled for member in width.members)
    missing = [name for name in members if name not in named]
    if missing:
        raise ValueError(f"coupled: the model has no parameter {missing[0]!r}: find the groups of this model")
    numbers = {name: number for number, name in enumerate(members)}
    own: dict[str, Any] = {
        "params": [(name, named[name]) for name in members],
        "penalty": penalty,
        ENTRY: [width.to_plain(numbers) for width in coupled],
    }
    check_coupled(own[ENTRY], [named[name] for name in members], list(members))
    if getattr(penalty, "of", None) == "flops":
        if example is None:
            raise ValueError("example: expected the model's input, to count the multiplications of of='flops'")
        costs = multiplications(model, example)
        own["costs"] = [costs.get(named[name], 0.0) for name in members]
    rest = [(name, parameter) for name, parameter in named.items() if name not in members]
    return [{**own, **options}, *([{"params": rest, "penalty": None, **options}] if rest else [])]


def check_coupled(widths: Any, params: Sequence[Tensor], names: Sequence[str] | None = None) -> list[CoupledWidth]:
    """The widths of a parameter group's entry, checked against its parameters.

    Args:
        widths: plain values, see :meth:`CoupledWidth.to_plain`.
        params: of the group.
        names: of them, for messages.

    Raises:
        ValueError: an entry is malformed, belongs to two units or lies outside its parameter.
    """
    if not isinstance(widths, (list, tuple)) or not widths:
        raise ValueError(f"coupled: expected a list of widths, of sa.coupled_groups(), got {widths!r}")
    try:
        found = [CoupledWidth.from_plain(width) for width in widths]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"coupled: expected widths as sa.coupled_groups() makes them: {error!r}") from error
    owned: dict[int, set[int]] = {}
    dims: dict[int, tuple[int, int]] = {}
    for width in found:
        size = 0
        for member in width.members:
            number = member.parameter
            if not isinstance(number, int) or not 0 <= number < len(params):
                raise ValueError(f"coupled: {width.name}: expected parameters 0 to {len(params) - 1}, got {number!r}")
            shape = tuple(params[number].shape)
            label = f"coupled: {width.name}: {names[number] if names else 'the parameter'} of shape {shape}"
            fits = 0 <= member.dim < len(shape) and (not member.experts or (member.dim > 0 and len(shape) > 1))
            if not fits or member.experts not in (0, shape[0]):
                raise ValueError(f"{label}: has no dimension {member.dim} of {member.experts or 1} stacked matrices")
            length, stacked = shape[member.dim], member.experts or 1
            at = range(length) if member.at is None else member.at
            if len(at) * stacked != width.units * member.each or not all(0 <= one < length for one in at):
                raise ValueError(f"{label}: expected {member.each} of {length} entries for each of {width.units} units")
            own = owned.setdefault(number, set())
            if len(set(at)) != len(at) or own & set(at) or dims.setdefault(number, _lies(member)) != _lies(member):
                raise ValueError(f"{label}: expected every entry in one unit")
            own |= set(at)
            size += member.each * (params[number].numel() // max(1, length * stacked))
        if not width.members or width.units < 1 or width.size < size:
            raise ValueError(f"coupled: {width.name}: expected members of {width.size} weights per unit, got {size}")
    return found


def cut_coupled(widths: Sequence[Any], entries: Sequence[Mapping[str, Any] | None]) -> list[Any]:
    """The entry of a parameter group whose parameters have been cut: units of which all is left.

    Args:
        widths: plain values.
        entries: of each parameter what was kept, ``{"from": shape, "keep": {dimension: indices}}``; None: all.

    Raises:
        ValueError: a unit is cut in a part of its parameters alone.
    """
    found = []
    for plain in widths:
        width = CoupledWidth.from_plain(plain)
        left: Tensor | None = None
        cuts: list[tuple[Member, Tensor, Tensor]] = []
        for member in width.members:
            entry = entries[int(member.parameter)]
            keep = None if entry is None else entry["keep"].get(str(member.dim))
            if keep is None:
                kept, length = None, 0
            else:
                length = entry["from"][member.dim]  # type: ignore[index]
                kept = torch.tensor(keep, device="cpu").expand(max(1, member.experts), -1)
            own = _left(member, width.units, kept, length)
            if left is not None and not torch.equal(own, left):
                raise ValueError(f"coupled: {width.name}: units are cut in a part of their parameters alone")
            left = own
            if kept is not None:
                cuts.append((member, kept, own))
        assert left is not None  # a width has members
        units = int(left.sum())
        if units:
            moved = {member: _moved(member, width.units, kept, own) for member, kept, own in cuts}
            members = tuple(moved.get(member, member) for member in width.members)
            found.append(dataclasses.replace(width, units=units, members=members).to_plain())
    return found


def _positions(member: Member, units: int) -> Tensor:
    """Entries of each unit, int64 [experts or 1, units of one, each]."""
    stacked = max(1, member.experts)
    count = units // stacked * member.each
    at = torch.arange(count, device="cpu") if member.at is None else torch.tensor(member.at, device="cpu")
    return at.reshape(1, units // stacked, member.each).expand(stacked, -1, -1)


def _left(member: Member, units: int, kept: Tensor | None, length: int) -> Tensor:
    """Which units have all their entries among the kept ones [experts or 1, kept]; all without these. Bool [units]."""
    if kept is None:
        return torch.ones(units, dtype=torch.bool, device="cpu")
    there = torch.zeros(max(1, member.experts), length, dtype=torch.bool, device="cpu").scatter_(1, kept, True)
    at = _positions(member, units)
    return there.gather(1, at.flatten(1)).reshape(at.shape).all(2).reshape(-1)


def _moved(member: Member, units: int, kept: Tensor, left: Tensor) -> Member:
    """The member with the places that its entries have among the kept ones."""
    at = _positions(member, units)
    mine = left.reshape(at.shape[:2])
    rows = [torch.searchsorted(own.contiguous(), one[own_left].flatten()) for own, one, own_left in
            zip(kept, at, mine, strict=True)]  # fmt: skip
    first = rows[0]
    if any(not torch.equal(row, first) for row in rows):
        raise ValueError("coupled: the experts of a stack are cut to different shapes")
    whole = torch.equal(first, torch.arange(kept.shape[1], device="cpu"))
    return dataclasses.replace(member, at=None if whole else tuple(first.tolist()))


def _lies(member: Member) -> tuple[int, int]:
    """How the entries of a member lie: its dimension and its stack; the same for all members of one parameter."""
    return member.dim, member.experts
