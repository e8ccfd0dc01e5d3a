"""Channels through operations that treat every element, or every channel, alike."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_accel.channels.call import Call, Measured, Results, rule
from sparse_accel.channels.slots import PINNED, Value, reduce_all, shrink, tie_along

_UNARY = """
relu relu6 gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid elu selu celu leaky_relu softplus softsign
logsigmoid log_sigmoid _threshold tanhshrink hardshrink softshrink threshold exp exp2 expm1 log log1p log2 log10 abs
neg negative sqrt rsqrt square pow sin cos tan asin acos atan sinh cosh erf erfc sign sgn clamp clip clamp_min
clamp_max reciprocal round floor ceil trunc frac nan_to_num float double half bfloat16 int long bool to contiguous
clone detach cpu cuda isnan isfinite logical_not type type_as zeros_like ones_like full_like
"""
_BINARY = """
add sub subtract mul multiply div divide true_divide rsub __radd__ __rmul__ __rsub__ __rtruediv__ __rdiv__ __rpow__
maximum minimum where gt lt ge le eq ne greater less addcmul addcdiv lerp fmod remainder atan2 copysign masked_fill
logical_and logical_or logical_xor fmax fmin expand_as floor_divide __and__ __or__ __xor__
"""
_PRODUCTS = frozenset(
    ["mul", "multiply", "__rmul__", "div", "divide", "true_divide", "__rdiv__", "__rtruediv__", "floor_divide", "rdiv"]
)
_REDUCE = "mean sum amax amin max min var std norm prod all any logsumexp argmax argmin median nanmean"


@rule(*_UNARY.split(), *_BINARY.split())
def _elementwise(call: Call) -> Results:
    if not isinstance(call.result, Tensor):  # where(condition): positions
        return call.give_up("has several results")
    shape = call.result.shape
    ndim = len(shape)
    labels = torch.zeros([1] * ndim, dtype=torch.int64, device="cpu")
    const = torch.ones([1] * ndim, dtype=torch.bool, device="cpu")
    zero = torch.zeros_like(const)
    extent = [1] * ndim  # of the operands so far
    tensors = call.tensors()[:1] if call.name in ("to", "type", "type_as") else call.tensors()
    for tensor in tensors:
        if tensor.dim() > ndim:
            return call.give_up("shapes do not broadcast")
        value = call.tracer.value_of(tensor)
        pad = [1] * (ndim - len(value.shape))
        own = value.labels.reshape(pad + list(value.labels.shape))
        own_const = value.const.reshape(pad + list(value.const.shape))
        own_extent = pad + list(value.shape)
        if call.name in ("mul", "multiply", "__rmul__"):  # not in place: the factors are needed
            zero = zero | (own_const & all_zero(tensor.detach().reshape(own_extent), own_const))
        labels = join(call, labels, own, extent, own_extent)
        extent = [max(a, b) for a, b in zip(extent, own_extent, strict=True)]
        const = const & own_const
    if call.name in ("zeros_like", "ones_like", "full_like"):
        const = torch.ones_like(const)
    if any(isinstance(item, Measured) for item in (*call.args, *call.kwargs.values())):
        const = torch.zeros_like(const)  # follows the input's size
    return Value(shape, labels, shrink(const | zero))


def all_zero(tensor: Tensor, core: Tensor) -> Tensor:
    """Where the tensor is zero along all dimensions in which ``core`` has size 1."""
    zero = tensor.eq(0).cpu()
    return reduce_all(zero, [dim for dim, size in enumerate(core.shape) if size == 1])


def join(call: Call, left: Tensor, right: Tensor, left_extent: list[int], right_extent: list[int]) -> Tensor:
    """Labels of the result of two operands: channels that meet are tied; one that is broadcast over the other's
    channels is read by all of them, and stays."""
    slots = call.graph.slots
    left_dims = [dim for dim, size in enumerate(left.shape) if size > 1]
    right_dims = [dim for dim, size in enumerate(right.shape) if size > 1]
    right_spreads = any(right_extent[dim] == 1 for dim in left_dims)
    left_spreads = any(left_extent[dim] == 1 for dim in right_dims)
    if right_spreads:
        slots.pin(right)
    if left_spreads:
        slots.pin(left)
    if right_spreads and left_spreads:
        return torch.full([1] * left.dim(), PINNED, device="cpu")
    if right_spreads:  # along its own dimensions the other one stays whole
        for dim in (dim for dim in left_dims if right_extent[dim] > 1):
            left = tie_along(slots, left, dim)
        return left
    if left_spreads:
        for dim in (dim for dim in right_dims if left_extent[dim] > 1):
            right = tie_along(slots, right, dim)
        return right
    if not (left_dims or right_dims) and max(left_extent, default=1) == 1:
        return right  # a number, or the first operand
    if not (left_dims or right_dims) and max(right_extent, default=1) == 1:
        return left
    if call.name.rstrip("_") not in _PRODUCTS and call.name not in _PRODUCTS:
        slots.unite(left, right)
        return left if left.numel() >= right.numel() else right
    # A gate is part of no sum. The product goes on as the factor whose channels are the older ones: what is multiplied.
    slots.unite(left, right, product=True)
    if left.numel() != right.numel():
        return left if left.numel() > right.numel() else right
    return left if int(slots.sums(left).min()) <= int(slots.sums(right).min()) else right


@rule("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
def _dropout(call: Call) -> Results:
    source = call.value()
    random = call.arg(2, "training", True) and call.arg(1, "p", 0.5)
    return Value(source.shape, source.labels, torch.zeros_like(source.const) if random else source.const)


@rule("softmax", "log_softmax", "normalize", "cumsum", "sort", "softmin")
def _along_dim(call: Call) -> Results:
    source = call.value()
    default = 1 if call.name == "normalize" else None
    dim = call.arg(2, "dim", default) if call.name == "normalize" else call.arg(1, "dim", default)
    if not isinstance(dim, int) or dim % len(source.shape) in source.varying():
        return call.give_up("joins the channels, which are kept")
    value = Value(source.shape, source.labels, torch.zeros([1] * len(source.shape), dtype=torch.bool, device="cpu"))
    return [value] * len(list(_outputs(call)))


@rule(*_REDUCE.split())
def _reduce(call: Call) -> Results:
    if len(call.tensors()) > 1:
        return _elementwise(call) if call.name in ("max", "min") else call.give_up("no rule for several tensors")
    source = call.value()
    position = 2 if call.name in ("norm", "std", "var") and len(call.args) > 2 else 1
    dims = call.arg(position, "dim", call.kwargs.get("axis"))
    ndim = len(source.shape)
    dims = [dims] if isinstance(dims, int) else dims
    if call.name == "norm" and "dim" not in call.kwargs and len(call.args) < 3:
        dims = None
    if not isinstance(dims, (tuple, list)) or not all(isinstance(dim, int) for dim in dims):
        dims = range(ndim)
    dims = sorted({dim % ndim for dim in dims})
    if any(dim in source.varying() for dim in dims):
        return call.give_up("joins the channels, which are kept")
    keeps_values = call.name in ("mean", "amax", "amin", "max", "min", "median", "nanmean", "any", "all")
    const = reduce_all(source.const, dims) & keeps_values
    labels = source.labels
    values = []
    for output in _outputs(call):
        if output.dim() == ndim:
            values.append(Value(output.shape, labels, const))
        else:
            kept = [dim for dim in range(ndim) if dim not in dims]
            values.append(
                Value(
                    output.shape,
                    labels.reshape([labels.shape[dim] for dim in kept]),
                    const.reshape([const.shape[dim] for dim in kept]),
                )
            )
    return values


def _outputs(call: Call) -> list[Tensor]:
    return [call.result] if isinstance(call.result, Tensor) else list(call.result)
