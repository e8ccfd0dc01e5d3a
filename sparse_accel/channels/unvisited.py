"""Layers that no example reaches: they are named, and what they may read is kept.

What such a layer reads cannot be seen, but its sizes are known. Every channel axis of one of its sizes may be what it
reads, or what it adds to, so it stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import nn

from sparse_accel.channels.graph import GROUPED, ChannelGraph, is_conv1d_linear
from sparse_accel.channels.slots import PINNED

_SIZES = ("num_features", "num_channels", "normalized_shape")  # of layers without parameters


def settle_unvisited(graph: ChannelGraph, model: nn.Module, used: set[str], visited: set[str], unvisited: str) -> None:
    """Name the parameters that no run has used; keep channels that fit the sizes of their layers.

    Args:
        graph: of all runs.
        model: the traced copy.
        used: names of parameters and buffers that some run has used.
        visited: names of modules that some run has called.
        unvisited: ``"keep"``, or ``"ignore"`` to name them alone.
    """
    own = {name: dict(module.named_parameters(name, recurse=False)) for name, module in model.named_modules()}
    idle = {name: [key for key in own[name] if key in graph.tensors and key not in used] for name in own}
    holders: dict[int, set[str]] = {}  # of every class, the tensors in whose axes it is
    for (tensor, _), slots in graph.axes.items():
        for root in set(graph.slots.roots(slots).tolist()):
            holders.setdefault(root, set()).add(tensor)
    inner = {key for name in idle for key in _inner(graph, model, name, used, holders)}
    sizes: dict[int, str] = {}
    flattened: dict[int, str] = {}
    for name, module in model.named_modules():
        if idle[name]:
            consequence = "channels that fit their sizes are kept" if unvisited == "keep" else "ignored"
            kind = type(module).__name__
            graph.note(f"{name or 'model'} ({kind}): no example uses {', '.join(idle[name])}: {consequence}")
        for key in idle[name]:
            for dim, size in _axes(graph, module, key):
                if (key, dim) not in inner:
                    sizes.setdefault(size, key)
                    if dim == (0 if is_conv1d_linear(module) else 1) and graph.tensors[key].dim() == 2:
                        flattened.setdefault(size, key)
        if name not in visited and not own[name] and not any(key in used for key, _ in module.named_buffers(name)):
            for attribute in _SIZES:
                found: Any = getattr(module, attribute, None)
                if isinstance(found, (int, tuple, list)):
                    sizes.setdefault(int(np.prod(found)), name)
    if unvisited == "ignore":
        return
    for (name, _), slots in list(graph.axes.items()):
        count = slots.numel()
        map_like = graph.tensors[name].dim() > 2  # its channels can be flattened
        fits = sizes.get(count) or next(
            (key for n, key in flattened.items() if map_like and n % max(1, count) == 0), ""
        )
        if fits and count > 1 and not graph.pinned(slots):
            graph.note(f"{name.rpartition('.')[0] or 'model'}: {count} channels are kept: {fits} may read them")
            graph.slots.pin(slots)


def _axes(graph: ChannelGraph, module: nn.Module, key: str) -> Iterator[tuple[int, int]]:
    """Dimensions of a parameter that may hold channels, with their sizes; ``GROUPED`` for those in blocks."""
    tensor, groups = graph.tensors[key], getattr(module, "groups", 1)
    grouped = isinstance(groups, int) and groups > 1 and tensor.dim() > 2
    for dim, size in enumerate(tensor.shape if tensor.dim() <= 2 else tensor.shape[:2]):
        if dim == 1 and grouped:
            yield GROUPED, size * groups
        elif size > 1:
            yield dim, size


def _inner(
    graph: ChannelGraph, model: nn.Module, name: str, used: set[str], holders: Mapping[int, set[str]]
) -> Iterator[tuple[str, int]]:
    """Axes of an unused module that stay inside it, as they do in a used one of the same kind beside it.

    Of a mixture's experts or a list of heads, those that no example reaches are built like those that one does.
    """
    module = model.get_submodule(name) if name else model
    mine = dict(module.named_parameters())
    if not name or not mine or any(f"{name}.{key}" in used for key in mine):
        return
    parent = name.rpartition(".")[0]
    for sibling, twin in model.get_submodule(parent).named_children():
        path = f"{parent}.{sibling}" if parent else sibling
        its = dict(twin.named_parameters())
        alike = type(twin) is type(module) and {k: t.shape for k, t in its.items()} == {
            k: t.shape for k, t in mine.items()
        }
        if not alike or not all(f"{path}.{key}" in used for key in its):
            continue
        for key, dim in ((key, dim) for key in its for dim in (0, 1, GROUPED)):
            slots = graph.axes.get((f"{path}.{key}", dim))
            roots = {PINNED} if slots is None else set(graph.slots.roots(slots).tolist())
            if PINNED not in roots and all(holder.startswith(f"{path}.") for root in roots for holder in holders[root]):
                yield f"{name}.{key}", dim
        return
