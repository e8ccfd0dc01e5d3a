"""How sparse a model is, by groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.groups import CoupledGroups, Grouping, group_layout, named_groupings
from sparse_accel.groups.spread import any_sharded, nonzero_of
from sparse_accel.report import Bars, Column, Contents, Fact, Note, Report, Table, percent, share, sizes
from sparse_accel.sharding import all_sums, local_part, shard_dims, shard_groups
from sparse_accel.wrappers import bare_model


@dataclass(frozen=True)
class TensorSparsity:
    """Zeros of one weight: its groups, those that are zero, its elements, those in zero groups, those that are zero."""

    name: str
    shape: tuple[int, ...]
    groups: int
    zero_groups: int
    numel: int
    in_zero_groups: int
    zeros: int

    @property
    def shares(self) -> tuple[float, float, float]:
        """Zero groups of the groups, elements in zero groups of the elements, zero elements of the elements."""
        numel = max(1, self.numel)
        return self.zero_groups / max(1, self.groups), self.in_zero_groups / numel, self.zeros / numel


@dataclass(frozen=True)
class SparsityReport(Report):
    """Zero groups of a model; a table when printed.

    Attributes:
        by: the grouping; ``"coupled"`` for groups over several parameters.
        layers: one row per weight, a tied weight once.
        left: elements of the other parameters of two or more dimensions (embeddings, stacks that nobody described,
            parametrized weights), by name: they count nowhere.
    """

    by: str
    layers: list[TensorSparsity]
    left: dict[str, int] = field(default_factory=dict)

    def _sum(self, key: str) -> int:
        return sum(getattr(layer, key) for layer in self.layers)

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self._sum("groups")

    @property
    def zero_groups(self) -> int:
        """Number of groups whose elements are all exactly zero."""
        return self._sum("zero_groups")

    @property
    def group_sparsity(self) -> float:
        """Share of the groups that are zero, in [0, 1]."""
        return self.zero_groups / self.groups if self.groups else 0.0

    @property
    def weighted_group_sparsity(self) -> float:
        """Share of the weights that lie in zero groups, in [0, 1]."""
        return self._sum("in_zero_groups") / self._sum("numel") if self._sum("numel") else 0.0

    @property
    def sparsity(self) -> float:
        """Share of the weights that are zero, in [0, 1]."""
        return self._sum("zeros") / self._sum("numel") if self._sum("numel") else 0.0

    def to_plain(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        return {
            "by": self.by,
            "groups": self.groups,
            "zero_groups": self.zero_groups,
            "group_sparsity": self.group_sparsity,
            "weighted_group_sparsity": self.weighted_group_sparsity,
            "sparsity": self.sparsity,
            "layers": [asdict(layer) for layer in self.layers],
            "left": dict(self.left),
        }

    def contents(self) -> Contents:
        """See :class:`~sparse_accel.Report`."""
        columns = [
            Column("weight", "weight"),
            Column("shape", "shape", sizes),
            Column("groups", "groups"),
            Column("zero_groups", "zero groups"),
            Column("of_groups", "of groups", share),
            Column("of_weights", "of weights", share),
            Column("zero_weights", "zero weights", share),
        ]
        rows = [(layer.name, layer.shape, layer.groups, layer.zero_groups, *layer.shares) for layer in self.layers]
        shares = (self.group_sparsity, self.weighted_group_sparsity, self.sparsity)
        table = Table(columns, rows, ("total", None, self.groups, self.zero_groups, *shares), f"groups by {self.by}")
        facts = [
            Fact("zero groups", share(shares[0]), f"{self.zero_groups:,} of {self.groups:,}", plain=""),
            Fact("weights in zero groups", share(shares[1]), plain=""),
            Fact("zero weights", share(shares[2]), f"of {self._sum('numel'):,}", plain=""),
        ]
        bars = Bars(
            "Zeros per weight",
            [layer.name for layer in self.layers],
            {
                "zero groups": [100 * layer.shares[0] for layer in self.layers],
                "zero weights": [100 * layer.shares[2] for layer in self.layers],
            },
            [f"{share(layer.shares[0])}, {share(layer.shares[2])}" for layer in self.layers],
            whole=100.0,
            unit="%",
        )
        return Contents("Sparsity", facts, [table], [bars], notes=self._notes())

    def _notes(self) -> list[Note]:
        if not self.left:
            return []
        names, count = list(self.left), sum(self.left.values())
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        whole = count + self._sum("numel")
        what = f"{percent(count, whole)} of the weights of two or more dimensions, which are not counted"
        return [Note(f"{', '.join(names[:8])}{more}: {what}", "left out")]


def sparsity(
    model: nn.Module, by: str | CoupledGroups = "input", stacked: Mapping[str, str | None] | None = None
) -> SparsityReport:
    """Count the zero groups of every weight that a penalty with this ``by`` regularizes.

    Of a sharded model (FSDP2, tensor parallelism) whole groups are counted; all processes have to call it, and get
    the same.

    Args:
        model: any module; Linear and (transposed, grouped, depthwise) convolution weights and weights of two or more
            dimensions of your own modules take part, biases, norms and embeddings do not. Tied weights count once.
        by: ``"input"``, ``"output"``, ``"kernel"`` or ``"element"``; or what :func:`sparse_accel.coupled_groups` found
            in this model: then a row is a width, and a group is all that goes with a unit.
        stacked: what stacks of matrices are, where their modules do not tell, as for :func:`sparse_accel.param_groups`.

    Raises:
        ValueError: ``by`` is none of these, ``stacked`` is wrong, or parameters are flat (FSDP1) or hidden behind a
            hook.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> _ = layer.weight.data[:, 1:].zero_()
        >>> report = sparsity(layer)
        >>> report.groups, report.zero_groups, report.group_sparsity
        (4, 3, 0.75)
    """
    if isinstance(by, CoupledGroups):
        with torch.no_grad():
            return _coupled_sparsity(model, by)
    Grouping(by).check()
    with torch.no_grad():
        layers, left = [], {}
        for name, parameter, grouping in named_groupings(model, by, stacked):
            if grouping is not None:
                layers.append(tensor_sparsity(name, parameter, grouping))
            elif parameter.dim() >= 2:
                left[name] = parameter.numel()
        return SparsityReport(by, layers, left)


def _coupled_sparsity(model: nn.Module, groups: CoupledGroups) -> SparsityReport:
    named: dict[str, Tensor] = dict(bare_model(model, sharded=True).named_parameters())
    layers, counted = [], set()
    for width in groups:
        missing = [str(member.parameter) for member in width.members if member.parameter not in named]
        if missing:
            raise ValueError(f"by: the model has no parameter {missing[0]!r}: find the groups of this model")
    nonzero = nonzero_of(groups, named) if any_sharded(named, groups) else None
    for number, width in enumerate(groups):
        if nonzero is None:
            zero, zeros = int(width.zero_units(named).sum()), int(width.zeros(named))
        else:
            zero = int((nonzero[number] == 0).sum())
            zeros = width.units * width.size - int(nonzero[number].sum())
        numel = width.units * width.size
        shape = (width.units, width.size)
        layers.append(TensorSparsity(width.name, shape, width.units, zero, numel, zero * width.size, zeros))
        counted |= {str(member.parameter) for member in width.members}
    others = {name: item.numel() for name, item in named.items() if item.dim() >= 2 and name not in counted}
    return SparsityReport("coupled", layers, others)


def tensor_sparsity(name: str, weight: Tensor, grouping: Grouping) -> TensorSparsity:
    """Count the zeros of one weight.

    Args:
        name: for the report.
        weight: of two or more dimensions unless ``grouping`` is by element.
        grouping: how it is cut into groups.

    Example:
        >>> row = tensor_sparsity("weight", torch.eye(3)[:, :2], Grouping("output"))
        >>> row.groups, row.zero_groups, row.zeros
        (3, 1, 4)
    """
    layout = group_layout(torch.empty(weight.shape, device="meta"), grouping)
    nonzero = local_part(weight).ne(0)
    alive = _group_any(nonzero, grouping.of_part(shard_dims(weight)))
    (parts,) = all_sums([alive.long()], shard_groups(weight, grouping.group_dims(weight.dim())))
    counts = torch.stack([parts.ne(0).sum(), nonzero.sum()])
    # Each sum over the processes that hold other groups, or other elements.
    (groups,) = all_sums(
        [counts[:1]], shard_groups(weight, set(range(weight.dim())) - grouping.group_dims(weight.dim()))
    )
    (elements,) = all_sums([counts[1:]], shard_groups(weight))
    dead = layout.num_groups - int(groups)
    return TensorSparsity(
        name,
        tuple(weight.shape),
        layout.num_groups,
        dead,
        weight.numel(),
        dead * layout.group_size,
        weight.numel() - int(elements),
    )


def _group_any(nonzero: Tensor, grouping: Grouping) -> Tensor:
    """Whether each group holds a nonzero element, bool, one entry per group."""
    if grouping.by == "element":
        return nonzero.reshape(-1)
    if nonzero.numel() == 0:  # an empty part of a sharded weight
        sizes = [length for dim, length in enumerate(nonzero.shape) if dim in grouping.group_dims(nonzero.dim())]
        return nonzero.new_zeros(math.prod(sizes))
    groups = grouping.conv_groups
    if grouping.stacked:
        nonzero, groups = nonzero.flatten(0, -2), math.prod(nonzero.shape[:-2])
    # [groups, first / groups, second, kernel]
    first, second, *kernel = nonzero.shape
    blocks = nonzero.reshape(groups, first // groups, second, math.prod(kernel)).any(3)
    if grouping.by == "kernel":
        return blocks.reshape(-1)
    by_first = (grouping.by == "output") != grouping.transposed
    return blocks.any(2 if by_first else 1).reshape(-1)
