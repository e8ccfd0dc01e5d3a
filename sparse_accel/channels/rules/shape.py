"""Channels through operations that move elements, or work on the spatial dimensions alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_accel.channels.attributes import Counted, count_sizes, free_dims, same_channels, tie_counted
from sparse_accel.channels.call import Call, Measured, Results, rule, tree_tensors
from sparse_accel.channels.rules.linear import channel_slots
from sparse_accel.channels.slots import PINNED, Value, reduce_all, shrink, tie_along


def _moved(call: Call) -> list[Value]:
    """Move the labels by the very call that moved the elements."""
    source = call.value()
    args, kwargs = call.args, dict(call.kwargs)
    if args:
        args = args[1:]
    else:
        kwargs.pop("input" if "input" in kwargs else "self")
    func = torch.Tensor.reshape if call.name == "view" else call.func
    args, kwargs = _on_cpu(args), _on_cpu(kwargs)  # where the labels are
    labels = list(tree_tensors(func(source.full_labels(), *args, **kwargs)))
    const = list(tree_tensors(func(source.full_const(), *args, **kwargs)))
    outputs = list(tree_tensors(call.result))
    return [
        Value(output.shape, shrink(label), shrink(mask))
        for output, label, mask in zip(outputs, labels, const, strict=True)
    ]


_FREE = "permute movedim moveaxis swapaxes swapdims mT unsqueeze flip flatten ravel repeat_interleave"


def _on_cpu(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.cpu()
    if isinstance(tree, dict):
        return {key: _on_cpu(item) for key, item in tree.items()}
    return type(tree)(map(_on_cpu, tree)) if type(tree) in (list, tuple) else tree


@rule(*_FREE.split())
def _free_move(call: Call) -> Results:
    if len(call.tensors()) > 1:
        return call.give_up("its sizes depend on data")
    return _moved(call)


@rule("t", "T", "transpose")
def _transpose(call: Call) -> Results:
    weight = call.arg(0, "input")
    if id(weight) in call.tracer.names and weight.dim() == 2:
        value = Value.opaque(call.result.shape, const=True)
        if call.result.shape == weight.shape[::-1]:
            value.matrix = (call.tracer.names[id(weight)], True)
        return value
    return _moved(call)


@rule("squeeze")
def _squeeze(call: Call) -> Results:
    # Without a dim the channels' own dimension would vanish too, once a single channel is left.
    if len(call.args) < 2 and "dim" not in call.kwargs and call.value().varying():
        return _keep_sizes(call, "squeeze() without a dim could drop the channel dimension")
    return _moved(call)


def _keep_sizes(call: Call, reason: str) -> Results:
    source = call.value()
    if source.varying() and not call.graph.pinned(source.labels):
        call.graph.note(f"{call.tracer.where()}: {call.name}: {reason}: channels are kept")
    call.graph.slots.pin(source.labels)
    return _moved(call)


def _asked_sizes(call: Call, ndim: int) -> list[Any] | None:
    """The sizes that a reshaping call asks for, one per dimension of its result; None for something else."""
    sizes: Any = call.args[1:] or call.kwargs.get("size") or call.kwargs.get("shape")
    if call.name == "unflatten":
        dim, sizes = call.arg(1, "dim"), call.arg(2, "sizes")
        ndim = call.arg(0, "input").dim()
        return [-1] * (dim % ndim) + list(sizes) + [-1] * (ndim - 1 - dim % ndim)  # the others stay as they are
    if not sizes or any(isinstance(size, torch.dtype) for size in sizes):
        return None
    sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    return list(sizes) if len(sizes) == ndim else None


@rule("view", "reshape", "unflatten", "expand")
def _reshape(call: Call) -> Results:
    sizes = _asked_sizes(call, call.result.dim())
    if sizes is None:
        return call.give_up("reinterprets the memory")
    moved = _moved(call)
    if call.name == "expand":
        moved = _copies(call, sizes, moved)
    labels, varying = moved[0].labels, moved[0].varying()
    for dim, size in enumerate(sizes):
        if not isinstance(size, Measured) or same_channels(call, size, labels):
            continue
        if dim not in varying or not tie_counted(call, size, labels, dim):
            for other in size.sources:  # of another tensor: a number that must not change
                call.graph.slots.pin(other)
    if not varying:
        return moved
    free = free_dims(call, sizes, labels)
    if free is None:
        fixed = int(sizes[min(varying)])
        return _keep_sizes(
            call, f"asks for the size {fixed} where channels lie (write -1, flatten, or the size of the same tensor)"
        )
    for dim in varying - free:  # of the same size before and after: blocks of channels go together
        labels = tie_along(call.graph.slots, labels, dim)
    if not count_sizes(call, sizes, labels, free):
        return _keep_sizes(call, "asks for a product of attributes where channels lie")
    return Value(moved[0].shape, labels, moved[0].const)


def _copies(call: Call, sizes: list[Any], moved: list[Value]) -> list[Value]:
    """Keys or values of one head, repeated for as many query heads as an attribute says: each copy is a unit.

    Their features are summed over, or read by all heads alike: they stay.
    """
    (value,) = moved
    shape = (1,) * (len(sizes) - call.value().labels.dim()) + tuple(call.value().shape)
    dims = [
        dim
        for dim, size in enumerate(sizes[:-2])
        if shape[dim] == 1 and isinstance(size, Counted) and (factor := size.chosen()) and factor.counts_heads
        and factor.value == int(size)
    ]  # fmt: skip
    if len(dims) != 1 or not value.varying() <= {len(sizes) - 1}:
        return moved
    call.graph.slots.pin(value.labels)
    extents = [1] * len(sizes)
    extents[dims[0]] = int(sizes[dims[0]])
    return [Value(value.shape, call.graph.slots.new(extents[dims[0]]).reshape(extents), value.const)]


@rule("chunk")
def _chunk(call: Call) -> Results:
    source = call.value()
    dim = call.arg(2, "dim", 0) % len(source.shape)
    sizes = {part.shape[dim] for part in call.result}
    if source.varying() != {dim} or len(sizes) != 1 or len(call.result) != call.arg(1, "chunks"):
        return _keep_sizes(call, "cuts the channels") if dim in source.varying() else _moved(call)
    call.graph.balanced.append(source.labels.reshape(len(call.result), -1))
    return _moved(call)


@rule("glu")
def _glu(call: Call) -> Results:
    source = call.value()
    dim = call.arg(1, "dim", -1) % len(source.shape)
    if dim not in source.varying():
        return Value(call.result.shape, source.labels, reduce_all(source.const, [dim]))
    if source.varying() != {dim}:
        return call.give_up("mixes the channels, which are kept")
    halves = source.labels.reshape(2, -1)
    call.graph.slots.unite(halves[0], halves[1])
    const = source.full_const().chunk(2, dim)
    return Value(call.result.shape, source.labels.chunk(2, dim)[0], shrink(const[0] & const[1]))


@rule("split")
def _split(call: Call) -> Results:
    source, size = call.value(), call.arg(1, "split_size_or_sections", call.kwargs.get("split_size"))
    dim = call.arg(2, "dim", 0) % len(source.shape)
    parts = source.shape[dim] // int(size) if isinstance(size, int) else 0
    if not isinstance(size, Measured) or source.varying() != {dim} or parts * int(size) != source.shape[dim]:
        return _cut(call)
    if not isinstance(size, Counted) and not same_channels(call, size, source.labels):
        return _cut(call)
    labels = source.labels.reshape(parts, -1)
    if not count_sizes(call, [size], labels[0], {0}):
        return _cut(call)
    call.graph.balanced.append(labels)
    return _moved(call)


@rule("split_with_sizes", "tensor_split", "unbind", "narrow", "select", "roll", "unfold")
def _cut(call: Call) -> Results:
    if call.func is torch.nn.functional.unfold:
        return _patches(call)
    source = call.value()
    position, default = {"unbind": (1, 0), "narrow": (1, 0), "select": (1, 0), "unfold": (1, 0), "roll": (2, None)}.get(
        call.name, (2, 0)
    )
    dim = call.arg(position, "dimension" if call.name == "unfold" else "dim", default)
    dims = [dim] if isinstance(dim, int) else dim
    if dims is None or any(d % len(source.shape) in source.varying() for d in dims):
        return _keep_sizes(call, "cuts the channels by fixed sizes")
    return _moved(call)


def _patches(call: Call) -> Results:
    """``F.unfold``: [batch, channels, ...] to [batch, channels times positions of the window, windows]."""
    source = call.value()
    if call.result.dim() != 3 or source.varying() != {1}:
        return call.give_up("mixes the channels, which are kept")
    times = call.result.shape[1] // source.shape[1]
    labels = source.labels.reshape(1, -1, 1).repeat_interleave(times, 1)
    return Value(call.result.shape, labels, torch.zeros([1] * 3, dtype=torch.bool, device="cpu"))


def _index_width(item: Any) -> int:
    """How many dimensions one entry of an index takes."""
    if item is None or item is Ellipsis:
        return 0
    return item.dim() if isinstance(item, Tensor) and item.dtype == torch.bool else 1


@rule("__getitem__")
def _getitem(call: Call) -> Results:
    source = call.value()
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    widths = [_index_width(item) for item in index]
    dim = 0
    touched = False
    for item, width in zip(index, widths, strict=True):
        if item is Ellipsis:
            dim += len(source.shape) - sum(widths)
        whole = isinstance(item, slice) and item == slice(None)
        touched |= not whole and any(d in source.varying() for d in range(dim, dim + width))
        dim += width
    for tensor in call.tensors()[1:]:
        call.tracer.pin(tensor)
    if touched:
        return _keep_sizes(call, "indexes the channels")
    return _moved(call)


@rule("repeat", "tile")
def _repeat(call: Call) -> Results:
    return _moved(call)


@rule("cat", "concat", "concatenate", "stack", "hstack", "vstack")
def _cat(call: Call) -> Results:
    values = [call.tracer.value_of(tensor) for tensor in call.tensors()]
    if call.name in ("cat", "concat", "concatenate"):
        dim = call.arg(1, "dim", 0) % call.result.dim()
        values = [value for value in values if len(value.shape) == call.result.dim()]
        return Value(call.result.shape, _cat_cores(values, dim, "labels"), _cat_cores(values, dim, "const"))
    rest = {"dim": call.arg(1, "dim", 0)} if call.name == "stack" else {}
    labels = call.func([value.full_labels() for value in values], **rest)
    const = call.func([value.full_const() for value in values], **rest)
    return Value(call.result.shape, shrink(labels), shrink(const))


def _cat_cores(values: list[Value], dim: int, name: str) -> Tensor:
    """Concatenate labels or masks, expanded no more than needed."""
    cores: list[Tensor] = [getattr(value, name) for value in values]
    wide = [max(core.shape[d] for core in cores) for d in range(cores[0].dim())]
    parts = []
    for core, value in zip(cores, values, strict=True):
        size = list(wide)
        size[dim] = value.shape[dim]
        parts.append(core.expand(size))
    return shrink(torch.cat(parts, dim))


def _spatial(call: Call, count: int | None, keeps_constants: bool) -> Results:
    """Only the last ``count`` dimensions are mixed; the others, with their channels, stay."""
    source = call.value()
    ndim = len(source.shape)
    dims = range(2 if count is None else ndim - count, ndim)
    if any(dim in source.varying() for dim in dims):
        return call.give_up("mixes the channels, which are kept")
    const = reduce_all(source.const, dims)
    if not keeps_constants:
        tensor = call.arg(0, "input").detach()
        zero = tensor.eq(0).cpu()
        const = const & reduce_all(zero, [dim for dim in range(ndim) if const.shape[dim] == 1])
    return [Value(output.shape, source.labels, const) for output in tree_tensors(call.result)]


@rule(*(f"{kind}_pool{n}d" for kind in ("max", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)))
@rule(*(f"max_pool{n}d_with_indices" for n in (1, 2, 3)), *(f"adaptive_max_pool{n}d_with_indices" for n in (1, 2, 3)))
def _pool(call: Call) -> Results:
    return _spatial(call, int(call.name[call.name.index("pool") + 4]), keeps_constants=True)


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d", "lp_pool1d", "lp_pool2d", "lp_pool3d")
def _average_pool(call: Call) -> Results:
    padding = call.arg(3, "padding", 0)
    padded = any(padding) if isinstance(padding, (tuple, list)) else bool(padding)
    plain = call.name.startswith("avg") and not padded and call.arg(6, "divisor_override") is None
    return _spatial(call, int(call.name[-2]), keeps_constants=plain)


@rule("interpolate", "upsample", "upsample_nearest", "upsample_bilinear")
def _interpolate(call: Call) -> Results:
    return _spatial(call, None, keeps_constants=True)


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle")
def _shuffle(call: Call) -> Results:
    if call.name == "channel_shuffle":
        return _keep_sizes(call, "shuffles a fixed number of groups")
    values = _moved(call)
    if call.name == "pixel_shuffle":
        channel_slots(call, values[0], call.result.dim() - 3)  # ties the channels that end up in one
    return values


@rule("pad")
def _pad(call: Call) -> Results:
    source = call.value()
    widths: list[Any] = list(call.arg(1, "pad"))
    mode, fill = call.arg(2, "mode", "constant"), call.arg(3, "value") or 0.0
    ndim = len(source.shape)
    padded = {ndim - 1 - i // 2 for i, width in enumerate(widths) if width}
    if padded & source.varying():
        if mode != "constant":
            return call.give_up("pads the channels")
        widths = [width if ndim - 1 - i // 2 in source.varying() else 0 for i, width in enumerate(widths)]
        labels = torch.nn.functional.pad(source.labels, widths, value=PINNED)
        return Value(call.result.shape, shrink(labels), torch.zeros([1] * ndim, dtype=torch.bool, device="cpu"))
    const = reduce_all(source.const, padded)
    if mode == "constant" and padded:
        same = call.arg(0, "input").detach().eq(fill).cpu()
        const = const & reduce_all(same, [dim for dim in range(ndim) if const.shape[dim] == 1])
    return Value(call.result.shape, source.labels, const)
