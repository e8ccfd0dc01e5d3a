"""Channels through layers with weights: linear maps, convolutions, norms, embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_accel.channels.attributes import known_sizes
from sparse_accel.channels.call import Call, Results, rule
from sparse_accel.channels.graph import GROUPED, Read
from sparse_accel.channels.slots import Value, along, by_group, channel_rows

_HIDDEN_SIZES = "intermediate_size ffn_dim d_ff mlp_dim inner_dim hidden_features"  # of a block around two layers


def channel_slots(call: Call, value: Value, dim: int) -> Tensor:
    """The slot of every channel along ``dim``, [C].

    Where one channel holds several slots (a pixel shuffle, concatenated positions) they are tied; where channels
    share slots the dimension is not one of channels, and all of them stay.
    """
    size = value.shape[dim]
    rows = channel_rows(value.labels, dim, size)
    if rows.shape[1] == 1:
        return rows[:, 0].clone()
    spread = value.labels.shape[dim] == 1 < size  # every channel holds the same slots
    distinct = [torch.unique(row) for row in (rows[:1] if spread else rows)]
    everything = torch.cat(distinct)
    if spread or torch.unique(everything).numel() != everything.numel():
        if not call.graph.pinned(everything):
            call.graph.note(f"{call.tracer.where()}: {call.name}: reads across channels, which are kept")
        call.graph.slots.pin(everything)
        return torch.zeros(size, dtype=torch.int64, device="cpu")
    for slots in distinct:
        call.graph.slots.unite(slots[:1], slots)
    return torch.stack([slots[0] for slots in distinct])


def constant_channels(value: Value, tensor: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Which channels hold one constant everywhere, and its value (float64; 0 elsewhere), both [C]."""
    size = value.shape[dim]
    const = channel_rows(value.const, dim, size).all(1)
    values = torch.zeros(size, dtype=torch.float64, device="cpu")
    where = const.nonzero().reshape(-1)
    if not where.numel() or not tensor.numel():
        return torch.zeros_like(const), values
    rows = tensor.detach().index_select(dim, where.to(tensor.device)).movedim(dim, 0).reshape(where.numel(), -1).cpu()
    first = rows[:, 0]
    uniform = (rows == first[:, None]).all(1) & first.isfinite()
    const[where[~uniform]] = False
    values[where[uniform]] = first[uniform].to(torch.float64)
    return const, values


def linear_read(
    call: Call,
    weight: Tensor,
    bias: Tensor | None,
    dim: int,
    out_dim: int,
    *,
    transposed: bool = False,
    groups: int = 1,
    pads: bool = False,
    spreads: bool = False,
    tensor: Tensor | None = None,
) -> Results:
    """Record one linear map from the channels of dimension ``dim`` to those of ``out_dim`` of the result.

    Args:
        call: the call.
        weight: [out, in / groups, ...], or [in, out / groups, ...] if transposed: a parameter or its transpose.
        bias: [out], or None.
        dim: channel dimension of the input.
        out_dim: channel dimension of the result.
        transposed: see weight.
        groups: the convolution's groups.
        pads: zeros are read beside the input's values, so that only a zero constant stays exact.
        spreads: outputs do not all see the same taps (a transposed convolution), likewise.
        tensor: the input; the call's first argument without it.
    """
    tracer, graph = call.tracer, call.graph
    key, flipped = _weight_key(call, weight)
    if key is None:
        return call.give_up("its weight is computed in the forward pass (a parametrization?)")
    transposed ^= flipped
    tensor = call.arg(0, "input") if tensor is None else tensor
    source = tracer.value_of(tensor)
    module = tracer.stack[-1][1]
    own = getattr(module, "weight", None) is weight
    if groups > 1 and not (own and getattr(module, "groups", None) == groups):
        return call.give_up("a grouped convolution outside of nn.Conv*")
    inputs = channel_slots(call, source, dim)
    first = graph.axis(key, 0)
    second = graph.axis(key, GROUPED if groups > 1 else 1, groups)
    outputs = second if transposed else first
    graph.slots.unite(first if transposed else second, inputs)

    if groups == len(inputs) == len(outputs):
        graph.slots.unite(inputs, outputs)  # depthwise: a channel goes in and out

    blocks = weight.detach().ne(0)
    if flipped:
        blocks = blocks.t()
    blocks = by_group(blocks, groups).any(3).cpu()
    nonzero = blocks.transpose(1, 2) if transposed else blocks
    foldable, values = constant_channels(source, tensor, dim)
    if pads or spreads:
        foldable = foldable & (values == 0)
        values = values * foldable
    if tracer.finished:  # only read in train mode
        foldable, values = torch.zeros_like(foldable), torch.zeros_like(values)
    bias_name = _bias_name(call, bias, outputs)
    can_add = bias_name is not None or (bias is None and own and hasattr(module, "bias") and not flipped)
    read = Read(
        module=tracer.stack[-1][0],
        weight=key,
        bias=bias_name,
        inputs=inputs,
        outputs=outputs,
        nonzero=nonzero,
        foldable=foldable,
        values=values,
        transposed=transposed,
        bias_ok=can_add,
    )
    if key not in tracer.finished:
        graph.reads.append(read)
    if own or (isinstance(module, torch.nn.Linear) and module.weight is tracer.graph.tensors.get(key)):
        for attribute in ("in_channels", "in_features", "nx"):
            graph.count(tracer.stack[-1], attribute, inputs)
        for attribute in ("out_channels", "out_features", "nf"):
            graph.count(tracer.stack[-1], attribute, outputs)
    for name, around in tracer.stack[-2:]:
        for attribute in known_sizes(len(outputs), _HIDDEN_SIZES, around):
            graph.count((name, around), attribute, outputs)
    shape = call.result.shape
    const = read.constant_outputs()
    if bias is not None and bias_name is None:
        const = const & bool(tracer.value_of(bias).const.all())
    ndim = len(shape)
    return Value(shape, along(outputs, out_dim, ndim), along(const, out_dim, ndim), source=len(graph.reads) - 1)


def _weight_key(call: Call, weight: Tensor) -> tuple[str | None, bool]:
    """The parameter behind a weight and whether it is its transpose."""
    if id(weight) in call.tracer.names:
        return call.tracer.names[id(weight)], False
    value = call.tracer.value_of(weight)
    if value.matrix is None:
        return None, False
    return value.matrix


def _bias_name(call: Call, bias: Tensor | None, outputs: Tensor) -> str | None:
    if bias is None:
        return None
    if id(bias) in call.tracer.names:
        name = call.tracer.names[id(bias)]
        call.graph.slots.unite(call.graph.axis(name, 0), outputs)
        return name
    value = call.tracer.value_of(bias)
    call.graph.slots.unite(value.labels.reshape(-1), outputs)
    return None


@rule("linear")
def _linear(call: Call) -> Results:
    return linear_read(
        call, call.arg(1, "weight"), call.arg(2, "bias"), call.value().labels.dim() - 1, call.result.dim() - 1
    )


def is_weight_product(call: Call) -> bool:
    """Whether a ``matmul`` multiplies an activation by a weight or its transpose."""
    left, right = call.arg(0, "input"), call.arg(1, "other" if call.name == "matmul" else "mat2")
    return (right.dim() == 2 and left.dim() >= 1 and id(left) not in call.tracer.names) and _weight_key(call, right)[
        0
    ] is not None


def times_weight(call: Call) -> Results:
    """``x @ weight``."""
    left, right = call.arg(0, "input"), call.arg(1, "other" if call.name == "matmul" else "mat2")
    return linear_read(call, right, None, left.dim() - 1, call.result.dim() - 1, transposed=True, tensor=left)


def add_weighted(call: Call) -> Results:
    """``torch.addmm(bias, x, weight)``."""
    bias, left, right = call.arg(0, "input"), call.arg(1, "mat1"), call.arg(2, "mat2")
    plain = bias.dim() == 1 and call.kwargs.get("beta", 1) == 1 == call.kwargs.get("alpha", 1)
    if not plain or id(left) in call.tracer.names or _weight_key(call, right)[0] is None:
        return call.give_up("not a product with a weight")
    return linear_read(call, right, bias, 1, 1, transposed=True, tensor=left)


@rule("conv1d", "conv2d", "conv3d")
def _conv(call: Call) -> Results:
    weight, padding = call.arg(1, "weight"), call.arg(4, "padding", 0)
    if isinstance(padding, str):
        pads = padding == "same" and any(size > 1 for size in weight.shape[2:])
    else:
        pads = any(padding) if isinstance(padding, (tuple, list)) else bool(padding)
    dim = call.result.dim() - weight.dim() + 1
    return linear_read(call, weight, call.arg(2, "bias"), dim, dim, groups=call.arg(6, "groups", 1), pads=pads)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(call: Call) -> Results:
    weight = call.arg(1, "weight")
    groups = call.arg(6, "groups", 1)
    plain = all(size == 1 for size in weight.shape[2:])
    for position, name, neutral in ((3, "stride", 1), (4, "padding", 0), (5, "output_padding", 0)):
        setting = call.arg(position, name, neutral)
        plain &= all(s == neutral for s in (setting if isinstance(setting, (tuple, list)) else (setting,)))
    dim = call.result.dim() - weight.dim() + 1
    return linear_read(call, weight, call.arg(2, "bias"), dim, dim, transposed=True, groups=groups, spreads=not plain)


@rule("batch_norm", "instance_norm")
def _per_channel_norm(call: Call) -> Results:
    source = call.value()
    names = ("running_mean", "running_var", "weight", "bias")
    tensors = {name: call.arg(position + 1, name) for position, name in enumerate(names)}
    dim = 1 if call.name == "batch_norm" or source.labels.dim() > 2 else 0
    slots = channel_slots(call, source, dim)
    const = source.const
    for tensor in tensors.values():
        if tensor is None:
            continue
        if id(tensor) in call.tracer.names:
            name = call.tracer.names[id(tensor)]
            call.graph.slots.unite(call.graph.axis(name, 0), slots)
            if name in call.tracer.changed:
                const = torch.zeros_like(const)
        else:
            value = call.tracer.value_of(tensor)
            call.graph.slots.unite(value.labels.reshape(-1), slots)
            const = const & bool(value.const.all())
    batch_statistics = call.arg(5, "training" if call.name == "batch_norm" else "use_input_stats", False)
    if batch_statistics:
        const = torch.zeros_like(const)
    mean = tensors["running_mean"]
    if source.source is not None and mean is not None and id(mean) in call.tracer.names and not batch_statistics:
        call.tracer.absorbers.append((source, call.tracer.names[id(mean)]))
    call.graph.count(call.tracer.stack[-1], "num_features", slots)
    return Value(source.shape, along(slots, dim, len(source.shape)), const)


@rule("prelu")
def _prelu(call: Call) -> Results:
    source, weight = call.value(), call.arg(1, "weight")
    if weight.numel() == 1:
        return Value(source.shape, source.labels, source.const)
    if id(weight) not in call.tracer.names:
        return call.give_up("its weight is computed in the forward pass")
    dim = min(1, len(source.shape) - 1)
    slots = channel_slots(call, source, dim)
    call.graph.slots.unite(call.graph.axis(call.tracer.names[id(weight)], 0), slots)
    call.graph.count(call.tracer.stack[-1], "num_parameters", slots)
    return Value(source.shape, along(slots, dim, len(source.shape)), source.const)


@rule("layer_norm", "rms_norm")
def _norm_of_last(call: Call) -> Results:
    source = call.value()
    count = len(call.arg(1, "normalized_shape"))
    if any(dim in source.varying() for dim in range(len(source.shape) - count, len(source.shape))):
        return _joint_norm(call)
    for tensor in call.tensors()[1:]:
        call.tracer.pin(tensor)  # over the features of a head, say
    return Value(source.shape, source.labels, torch.zeros([1] * len(source.shape), dtype=torch.bool, device="cpu"))


@rule("group_norm", "local_response_norm")
def _joint_norm(call: Call) -> Results:
    return call.give_up("its statistics join the channels, which are kept")


@rule("embedding")
def _embedding(call: Call) -> Results:
    # F.embedding(input, weight, padding_idx, max_norm, ...); max_norm joins the columns.
    weight = call.arg(1, "weight")
    if id(weight) not in call.tracer.names or call.arg(3, "max_norm") is not None:
        return call.give_up("its columns are kept")
    name = call.tracer.names[id(weight)]
    call.graph.slots.pin(call.graph.axis(name, 0))
    call.graph.count(call.tracer.stack[-1], "embedding_dim", call.graph.axis(name, 1))
    value = Value.opaque(call.result.shape)
    value.labels = along(call.graph.axis(name, 1), call.result.dim() - 1, call.result.dim())
    return value
