"""Finds the widths of a model in its channel graph."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sparse_accel.channels.graph import GROUPED, ChannelGraph, Read, is_conv1d_linear
from sparse_accel.channels.slots import PINNED
from sparse_accel.channels.widths import Consumer, ExpertWidth, MeanOver, Width, Widths

_Signature = frozenset[tuple[tuple[str, int], int]]
_LINEAR_MAPS = (nn.Linear, nn.modules.conv._ConvNd)


def tie_for_removal(graph: ChannelGraph) -> None:
    """Tie what can only go together once the choice is free: the parts of a chunk, a depthwise group's channels."""
    for parts in graph.balanced:
        for part in parts[1:]:
            graph.slots.unite(parts[0], part)
    for read in graph.reads:
        if read.groups > 1 and read.input_blocks.shape[1] == 1:
            graph.slots.unite(read.input_blocks, read.output_blocks)


class _Lookup:
    """A graph's reads by what they have to do with, put in order once: every width asks.

    Args:
        graph: after :func:`tie_for_removal`.
        model: whose modules the graph names.

    Attributes:
        roots: class of every slot.
        index: unit of every class of the width at hand, -1 for others.
        embeddings: weights of embeddings that have an axis of channels, with its classes.
        names: of the parameters, by the tensor's id.
        users: modules that read a weight, by its name.
    """

    def __init__(self, graph: ChannelGraph, model: nn.Module) -> None:
        self.graph, self.model = graph, model
        self.roots = graph.slots.roots()
        self.index = np.full(len(self.roots), -1, dtype=np.int64)
        self.inputs = [self.roots[read.inputs.numpy()] for read in graph.reads]
        self.outputs = [self.roots[read.outputs.numpy()] for read in graph.reads]
        own = [np.unique(np.concatenate(sides)) for sides in zip(self.inputs, self.outputs, strict=True)]
        classes = np.concatenate([np.zeros(0, dtype=np.int64), *own])
        positions = np.repeat(np.arange(len(own)), np.array([len(part) for part in own], dtype=np.int64))
        order = np.argsort(classes, kind="stable")
        self._classes, self._positions = classes[order], positions[order]
        self.embeddings = {
            name: self.roots[slots.numpy()]
            for (name, dim), slots in graph.axes.items()
            if dim == 1 and _is_embedding(model, name)
        }
        self.names: dict[int, list[str]] = {}
        for name, item in model.named_parameters(remove_duplicate=False):
            self.names.setdefault(id(item), []).append(name)
        self.users: dict[str, list[str]] = {}
        for read in graph.reads:
            self.users.setdefault(read.weight, []).append(read.module)

    def reads_of(self, classes: np.ndarray) -> list[int]:
        """Positions of the reads that take or make one of some classes, ascending."""
        starts = np.searchsorted(self._classes, classes, "left")
        ends = np.searchsorted(self._classes, classes, "right")
        parts = [self._positions[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        return [int(position) for position in np.unique(np.concatenate(parts))] if parts else []


def widths_of(graph: ChannelGraph, model: nn.Module) -> Widths:
    """The widths of a graph after :func:`tie_for_removal`.

    Args:
        graph: of the model.
        model: whose modules the graph names.
    """
    lookup = _Lookup(graph, model)
    roots = lookup.roots
    axes = {key: roots[slots.numpy()] for key, slots in graph.axes.items()}
    signatures: dict[int, dict[tuple[str, int], int]] = {}
    for key, classes in axes.items():
        if key[1] == 1 and (key[0], GROUPED) in axes:
            continue
        for root, count in zip(*np.unique(classes, return_counts=True), strict=True):
            if root != PINNED:
                signatures.setdefault(int(root), {})[key] = int(count)
    members: dict[_Signature, list[int]] = {}
    for root, places in signatures.items():
        members.setdefault(frozenset(places.items()), []).append(root)
    found = Widths()
    found.notes = list(graph.notes)
    heads: dict[int, str] = {}
    for name, labels in graph.heads:
        for root in roots[labels.numpy()].tolist():
            heads.setdefault(root, name)
    for classes_of_width in members.values():
        width = _width(lookup, sorted(classes_of_width))
        lookup.index[classes_of_width] = -1
        if width is not None:
            if classes_of_width[0] in heads:
                width.kind, width.name = "heads", heads[classes_of_width[0]]
            found.append(width)
    found += [ExpertWidth.of(stack) for stack in graph.stacks]
    found.sort(key=lambda width: (width.order, width.name))
    _balance(graph, roots, found)
    _unique_names(found)
    _refusals(graph, model, roots, found)
    return found


def _width(lookup: _Lookup, classes: list[int]) -> Width | None:
    """The width of these classes, or None if no linear map reads it or there is but one unit."""
    graph, roots, index = lookup.graph, lookup.roots, lookup.index
    producers: dict[str, int] = {}
    rows: dict[str, Tensor] = {}
    reads: list[tuple[int, Read]] = []
    inner: list[str] = []
    index[classes] = np.arange(len(classes))
    for position in lookup.reads_of(np.asarray(classes)):
        read = graph.reads[position]
        made, taken = index[lookup.outputs[position]], index[lookup.inputs[position]]
        makes, takes = bool((made >= 0).any()), bool((taken >= 0).any())
        if makes and takes and read.groups > 1 and read.input_blocks.shape[1] == 1:
            inner.append(read.module)
        elif takes:
            reads.append((position, read))
        if makes:
            producers.setdefault(read.module, position)
            if read.weight not in rows:
                rows[read.weight] = _positions(made, len(classes))
    for name, own in lookup.embeddings.items():
        if bool((index[own] >= 0).any()):
            producers.setdefault(name.rpartition(".")[0], -1)
            rows.setdefault(name, _positions(index[own], len(classes)))
    if not reads or not rows or len(classes) < 2:
        return None
    made_by = sorted(producers, key=lambda name: producers[name])
    # Units in the order of the first producer's rows.
    first = next(iter(sorted(rows.items(), key=lambda item: producers.get(item[0].rpartition(".")[0], 0))))[1]
    order = first[:, 0].argsort(stable=True)
    ordered = np.asarray(classes, dtype=np.int64)[order.numpy()]
    rows = {name: table[order] for name, table in rows.items()}
    index[ordered] = np.arange(len(ordered))
    start = min(position for position, _ in reads)
    coupled = _adds_to_itself(graph, roots, index, reads, {p for name, p in producers.items() if name not in inner})
    late = [] if coupled else [p for name, p in producers.items() if p >= start and name not in inner]
    consumers = _consumers(lookup, reads, len(ordered), late)
    behind = [position for position, _ in reads if position > max(late, default=-1)]
    return Width(
        name=made_by[0],
        kind="channels",
        units=len(ordered),
        unit_size=consumers[0].channels.shape[1],
        producers=made_by,
        consumers=consumers,
        rows=rows,
        inner=inner,
        coupled=coupled,
        order=min(behind, default=start),
        gates=[name for name in made_by if producers[name] in late],
        classes=ordered,
        norms=_norms(graph, index[roots], len(ordered)),
    )


def _norms(graph: ChannelGraph, index: np.ndarray, units: int) -> list[MeanOver]:
    """What divides by a mean over the units; index: of every slot, -1 for others."""
    found = {}
    for norm in graph.response_norms:
        own = index[norm.slots.numpy()]
        if bool((own >= 0).any()):
            whole = bool((own >= 0).all())
            found[norm.module] = MeanOver(norm.module, norm.weight, norm.dim, _positions(own, units), whole)
    return list(found.values())


def _adds_to_itself(
    graph: ChannelGraph, roots: np.ndarray, index: np.ndarray, reads: list[tuple[int, Read]], producers: set[int]
) -> bool:
    """Whether something that comes after a reader of the units is added to them: a residual stream.

    What only multiplies them, as a gate computed from them does, is another sum of the graph's slots.

    Args:
        graph: of the model.
        roots: class of every slot.
        index: unit of every class, -1 for others.
        reads: that take the units, with their positions.
        producers: positions of the reads that make them; -1 for an embedding.
    """
    first: dict[int, int] = {}  # position of the first reader of each sum
    for position, read in reads:
        own = read.inputs[torch.from_numpy(index[roots[read.inputs.numpy()]] >= 0)]
        for part in np.unique(graph.slots.sums(own)).tolist():
            first.setdefault(part, position)
    for position in producers - {-1}:
        outputs = graph.reads[position].outputs
        own = outputs[torch.from_numpy(index[roots[outputs.numpy()]] >= 0)]
        parts = np.unique(graph.slots.sums(own)).tolist()
        if any(part in first and position >= first[part] for part in parts):
            return True
    return False


def _is_embedding(model: nn.Module, weight: str) -> bool:
    return isinstance(model.get_submodule(weight.rpartition(".")[0]), nn.Embedding)


def _positions(owner: np.ndarray, units: int) -> Tensor:
    """Positions that each unit owns in an axis, [units, per unit], from the axis' unit indices (-1: none)."""
    positions = np.argsort(owner, kind="stable")[int((owner < 0).sum()) :]
    return torch.from_numpy(positions.reshape(units, -1).copy())


def _consumers(lookup: _Lookup, reads: list[tuple[int, Read]], units: int, gates: list[int]) -> list[Consumer]:
    consumers: dict[tuple[str, str], Consumer] = {}
    for position, read in reads:
        key = (read.module, read.weight)
        if key in consumers:
            consumers[key].calls += 1
            continue
        obstacle = _obstacle(lookup, read)
        consumers[key] = Consumer(
            module=read.module,
            weight=read.weight,
            bias=read.bias,
            norm=None if read.norm is None else read.norm.rpartition(".")[0],
            channels=_positions(lookup.index[lookup.inputs[position]], units),
            groups=read.groups,
            transposed=read.transposed,
            plain=not obstacle,
            obstacle=obstacle,
            stage=sum(gate < position for gate in gates),
        )
    return list(consumers.values())


def _obstacle(lookup: _Lookup, read: Read) -> str:
    """Why no new weight can be written for a reader of units; empty if one can."""
    module = lookup.model.get_submodule(read.module)
    tensor = getattr(module, "weight", None)  # held while it is looked up: no other tensor has its id
    names = lookup.names.get(id(tensor), [])
    if read.weight not in names:
        return f"it is computed by the forward pass of a {type(module).__name__}, not by a layer that owns the weight"
    users = dict.fromkeys([*lookup.users[read.weight], *(name.rpartition(".")[0] for name in names)])
    others = [name for name in users if name != read.module]
    if others:
        return f"its weight is also that of {', '.join(others)}"
    if not (isinstance(module, _LINEAR_MAPS) or is_conv1d_linear(module)):
        return f"a {type(module).__name__} is none of Linear, Conv1d to Conv3d, ConvTranspose1d to 3d and HF Conv1D"
    return ""


def _balance(graph: ChannelGraph, roots: np.ndarray, widths: Widths) -> None:
    """Give widths the rows of units that must keep equally many; refuse what cannot be stated so."""
    owner = np.full(len(roots), -1, dtype=np.int64)
    unit = np.full(len(roots), -1, dtype=np.int64)
    for number, width in enumerate(widths):
        owner[width.classes] = number
        unit[width.classes] = np.arange(len(width.classes))
    refused: set[int] = set()
    for read in graph.reads:
        if read.groups == 1 or read.input_blocks.shape[1] == 1:
            continue
        for side in (read.input_blocks, read.output_blocks):
            classes = roots[side.numpy()]
            owners = set(np.unique(owner[classes]).tolist())
            if owners == {-1}:
                continue
            units = torch.from_numpy(unit[classes])
            split = [torch.unique(row) for row in units]
            blocks = None
            if len(owners) == 1 and len({len(row) for row in split}) == 1:
                blocks = torch.stack(split)
            number = max(owners)
            known = widths[number].balance
            if (
                blocks is None
                or blocks.unique().numel() != blocks.numel()
                or (known is not None and not torch.equal(known, blocks))
            ):
                refused |= owners - {-1}
                for one in owners - {-1}:
                    reason = f"the groups of {read.module} cannot stay equally wide"
                    widths.refused[widths[one].name] = reason
            else:
                widths[number].balance = blocks
    for number in sorted(refused, reverse=True):
        del widths[number]


def _unique_names(widths: Widths) -> None:
    seen: dict[str, int] = {}
    for width in widths:
        count = seen.get(width.name, 0)
        seen[width.name] = count + 1
        if count:
            width.name = f"{width.name}#{count}"


def _refusals(graph: ChannelGraph, model: nn.Module, roots: np.ndarray, widths: Widths) -> None:
    """Say why layers keep their channels: by a note of their own, or because of what takes their outputs."""
    made = {name for width in widths for name in (*width.producers, *width.inner)}
    modules = dict(model.named_modules())
    own: dict[str, str] = {}  # the first note that starts with "name (kind): "
    for note in graph.notes:
        own.setdefault(note[: note.find("): ") + 3], note)
    for read in graph.reads:
        if read.module in made or read.module in widths.refused:
            continue
        start = f"{read.module or 'model'} ({type(model.get_submodule(read.module)).__name__}): "
        pinned = bool((roots[read.outputs.numpy()] == PINNED).any())
        why = "its outputs must stay" if pinned else "its outputs are a single unit, or nobody reads them"
        widths.refused[read.module] = own.get(start, start + why)
    for note in graph.notes:
        name = note.split(" (", 1)[0]
        if name in modules and name not in made:
            widths.refused.setdefault(name, note)
