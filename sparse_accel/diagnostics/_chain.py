"""Chains of hidden layers: networks in which each unit's parameters can be moved to any place of its layer.

A *chain* is a network whose hidden widths read one another in turn, the last one read by the output layer alone. Every
parameter then belongs to a unit (its *rows*: incoming weights, bias, norm), or to the output layer. A weight between
two hidden layers has rows of one and columns of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparse_accel.channels.graph import GROUPED, ChannelGraph, UnsupportedModelError, tensors_of
from sparse_accel.channels.runs import Examples
from sparse_accel.channels.slots import PINNED
from sparse_accel.channels.width_search import widths_of
from sparse_accel.channels.widths import Width, Widths
from sparse_accel.diagnostics._outer import untreated
from sparse_accel.removal.remove import followed

State = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Axis:
    """A dimension of a tensor that holds the units of a hidden layer.

    Attributes:
        dim: of the tensor.
        layer: number of the hidden layer.
        table: which entries each unit owns, int64 [units, entries].
    """

    dim: int
    layer: int
    table: Tensor

    def entries(self, units: Tensor, like: Tensor) -> Tensor:
        """What units own, in their order, on a tensor's device."""
        return self.table[units].flatten().to(like.device)


@dataclass(eq=False)
class Chain:
    """The hidden layers of a network, first to last, and who owns its parameters.

    Attributes:
        widths: of the hidden layers.
        rows: by tensor, the axis along which units own what makes them.
        columns: by weight, the axis along which units own what reads them.
        outer: names of the output layer's weights and biases.
        others: names of all other tensors: they have to be alike in two networks.
        reasons: why a layer is no hidden one, by its name.
    """

    widths: list[Width]
    rows: dict[str, Axis] = field(default_factory=dict)
    columns: dict[str, Axis] = field(default_factory=dict)
    outer: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    reasons: Mapping[str, str] = field(default_factory=dict)

    def place(
        self,
        target: State,
        source: State,
        layer: int,
        units: tuple[Tensor, Tensor],
        below: tuple[Tensor, Tensor] | None,
    ) -> None:
        """Write units of one state into places of another: all that makes them.

        Args:
            target: gets new tensors; its old ones, which other states may share, stay.
            source: where the units are taken from.
            layer: theirs.
            units: which ones, and their new places.
            below: units of the layer before that they read, and the new places of those: others are read no more.
                None to read what they did.
        """
        for name, axis in self.rows.items():
            if axis.layer != layer:
                continue
            block = source[name].index_select(axis.dim, axis.entries(units[0], source[name]))
            if below is not None and name in self.columns:
                read = self.columns[name]
                moved = torch.zeros_like(block)
                taken = block.index_select(read.dim, read.entries(below[0], block))
                block = moved.index_copy_(read.dim, read.entries(below[1], block), taken)
            target[name] = target[name].index_copy(axis.dim, axis.entries(units[1], target[name]), block)

    def read(self, target: State, source: State, units: tuple[Tensor, Tensor]) -> None:
        """Let the output layer read the last hidden layer's units in places of theirs as it does in another state.

        Args:
            target: gets new tensors for its output layer: all other places are read no more.
            source: whose output layer reads the units.
            units: which ones, and their places.
        """
        for name in self.outer:
            if name not in self.columns:
                target[name] = source[name]
                continue
            axis = self.columns[name]
            taken = source[name].index_select(axis.dim, axis.entries(units[0], source[name]))
            silent = torch.zeros_like(target[name])
            target[name] = silent.index_copy_(axis.dim, axis.entries(units[1], taken), taken)

    def permuted(self, state: State, orders: Sequence[Tensor]) -> State:
        """The same network with its units in another order: unit ``orders[layer][i]`` comes to place i."""
        found = dict(state)
        for axes in (self.rows, self.columns):
            for name, axis in axes.items():
                places = torch.arange(len(axis.table), device="cpu")
                moved = found[name].index_select(axis.dim, axis.entries(orders[axis.layer], found[name]))
                new = found[name].clone()
                found[name] = new.index_copy_(axis.dim, axis.entries(places, new), moved)
        return found


def find_chain(model: nn.Module, inputs: Any) -> Chain:
    """The hidden layers of a model.

    Args:
        model: stays as it is.
        inputs: of one run.

    Raises:
        UnsupportedModelError: the model is no chain; the message names the module in the way, and says why.
    """
    graph, _ = followed(model, Examples.of(inputs))
    widths = widths_of(graph, model)
    kind = type(model).__name__
    if not widths:
        reasons = str(widths.refused) or "no linear map reads units that another one makes"
        raise UnsupportedModelError(f"{kind}: no hidden layer whose units could be moved: {reasons}")
    for width in widths:
        why = _obstacle(width, model)
        if why:
            raise UnsupportedModelError(f"{kind}: {width.name}: {why}")
    axes = _axes(graph, widths)
    order = _order(widths, axes, kind)
    return _assemble(model, widths, axes, order)


def _obstacle(width: Width, model: nn.Module) -> str:
    """Why a width is no hidden layer of a chain; empty if it may be."""
    if width.kind != "channels":
        return f"its units are {width.kind}, which a path cannot move"
    why = untreated(width)
    if why:
        return why
    if width.balance is not None:
        return "a grouped convolution ties its units to their groups"
    if width.gates:
        return f"{width.gates[0]} multiplies its units by what is computed from them"
    for consumer in width.consumers:
        if consumer.calls != 1:
            return f"one forward pass calls {consumer.module}, which reads its units, {consumer.calls} times"
        module = model.get_submodule(consumer.module)
        total = getattr(module, "in_channels", getattr(module, "in_features", consumer.channels.numel()))
        if consumer.channels.numel() != total:
            return f"{consumer.module} reads {total} channels, of which {consumer.channels.numel()} are its units"
    return ""


def _axes(graph: ChannelGraph, widths: Widths) -> dict[tuple[str, int], Axis]:
    """The axes that hold units, by tensor and dimension; layers are numbers in ``widths``."""
    roots = graph.slots.roots()
    layer = np.full(len(roots), -1, dtype=np.int64)
    unit = np.full(len(roots), -1, dtype=np.int64)
    for number, width in enumerate(widths):
        layer[width.classes], unit[width.classes] = number, np.arange(width.units)
    found = {}
    for (name, dim), slots in graph.axes.items():
        classes = roots[slots.numpy()]
        owners = set(layer[classes].tolist())
        if owners == {-1} or dim == GROUPED or (classes == PINNED).all():
            continue
        if len(owners) > 1:
            names = " and ".join(sorted(widths[number].name if number >= 0 else "others" for number in owners))
            raise UnsupportedModelError(f"{name}: one dimension holds units of {names}")
        number = owners.pop()
        order = np.argsort(unit[classes], kind="stable").reshape(widths[number].units, -1)
        found[name, dim] = Axis(dim, number, torch.from_numpy(order.copy()))
    return found


def _order(widths: Widths, axes: Mapping[tuple[str, int], Axis], kind: str) -> list[int]:
    """Numbers of the widths, first to last."""
    after: dict[int, int | None] = {}
    for number, width in enumerate(widths):
        following = {}
        for consumer in width.consumers:
            made = axes.get((consumer.weight, 1 if consumer.transposed else 0))
            following[consumer.module] = None if made is None else made.layer
        if len(set(following.values())) != 1:
            raise UnsupportedModelError(
                f"{kind}: {width.name}: its units are read by {', '.join(following)}, not by one layer after the other"
            )
        after[number] = next(iter(following.values()))
    starts = set(after) - set(after.values())
    order: list[int] = []
    place = next(iter(starts)) if len(starts) == 1 else None
    while place is not None and place not in order:
        order.append(place)
        place = after[place]
    if len(order) != len(widths):
        names = [width.name for number, width in enumerate(widths) if number not in order[:1]]
        raise UnsupportedModelError(f"{kind}: {', '.join(names)}: expected hidden layers that read one another in turn")
    return order


def _assemble(model: nn.Module, widths: Widths, axes: Mapping[tuple[str, int], Axis], order: Sequence[int]) -> Chain:
    """The chain, its layers renumbered; refuses tensors that units own in more ways than two."""
    number = {old: new for new, old in enumerate(order)}
    chain = Chain([widths[old] for old in order], reasons=widths.refused)
    readers = {
        consumer.weight: (1 if not consumer.transposed else 0, layer)
        for layer, width in enumerate(chain.widths)
        for consumer in width.consumers
    }
    last = chain.widths[-1]
    outer = {name for consumer in last.consumers for name in (consumer.weight, consumer.bias) if name is not None}
    for name in tensors_of(model):
        own = [Axis(axis.dim, number[axis.layer], axis.table) for (key, _), axis in axes.items() if key == name]
        dim, layer = readers.get(name, (None, -1))
        columns = [axis for axis in own if axis.dim == dim and axis.layer == layer]
        rows = [axis for axis in own if axis not in columns]
        if len(rows) > 1 or (columns and rows and rows[0].layer != layer + 1) or (dim is not None and not columns):
            raise UnsupportedModelError(f"{name}: its dimensions hold units of several hidden layers")
        if columns:
            chain.columns[name] = columns[0]
        if rows:
            chain.rows[name] = rows[0]
        if name in outer:
            chain.outer.append(name)
        elif not own:
            chain.others.append(name)
    return chain


def check_alike(a: nn.Module, b: nn.Module) -> None:
    """Raise ValueError unless two models have the same modules, and tensors of the same shapes and dtypes."""
    kinds: list[dict[str, Any]] = [{n: type(m).__name__ for n, m in model.named_modules()} for model in (a, b)]
    describe: list[Callable[[Tensor], Any]] = [lambda tensor: (tuple(tensor.shape), tensor.dtype)]
    shapes = [{n: describe[0](t) for n, t in tensors_of(model).items()} for model in (a, b)]
    for what, (first, second) in (("module", kinds), ("tensor", shapes)):
        for name in {**first, **second}:
            if first.get(name) != second.get(name):
                raise ValueError(
                    f"b: expected the architecture of a; {what} {name or 'model'}: {first.get(name, 'none')} in a, "
                    f"{second.get(name, 'none')} in b"
                )
