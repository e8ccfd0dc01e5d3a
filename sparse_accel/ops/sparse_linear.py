"""Products with weights of which only some are kept: :class:`~sparse_accel.ops.bitmask.Bitmask`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_accel import reference

from ._library import LIBRARY, call, has_kernels, kernels, register
from .bitmask import Bitmask


def sparse_linear(x: Tensor, weight: Bitmask, bias: Tensor | None = None, *, activation: str = "none") -> Tensor:
    """``activation(x @ W.T + bias)`` for a weight of which only some elements are kept.

    Sums are in float32, each in a fixed order: neither threads nor other inputs of the batch change a bit of a row's
    result, the number of inputs may. Gradients flow to ``x``, ``bias`` and the kept values (not int8 ones).

    Of an input that is infinite or NaN, weights that are not kept may make NaN, as in a dense product, or nothing.

    Args:
        x: ``[.., columns]`` float32, bfloat16 or float16.
        weight: values of the dtype of ``x``, or int8.
        bias: ``[rows]`` of the dtype of ``x``.
        activation: ``"none"``, ``"relu"``, ``"gelu"``, ``"gelu_tanh"`` or ``"silu"``.

    Returns:
        ``[.., rows]`` of the dtype of ``x``.

    Raises:
        ValueError: shapes or devices that do not fit, an unknown activation.
        TypeError: a dtype that does not fit.

    Example:
        >>> w = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
        >>> sparse_linear(torch.tensor([[3.0, -4.0]]), Bitmask.pack(w), activation="relu")
        tensor([[0., 3.]])
    """
    if x.dim() == 0 or x.shape[-1] != weight.columns:
        raise ValueError(f"x: expected {weight.columns} columns, got shape {list(x.shape)}")
    return linear_of_parts(x, weight.values, weight.bits, weight.offsets, weight.scales, bias, weight.rows, activation)


def linear_of_parts(
    x: Tensor,
    values: Tensor,
    bits: Tensor,
    offsets: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    rows: int,
    activation: str = "none",
) -> Tensor:
    """:func:`sparse_linear` on the parts of a weight."""
    arguments = (x, values, bits, offsets, scales, bias, rows, activation)
    tracked = torch.is_grad_enabled() and (
        x.requires_grad or values.requires_grad or (bias is not None and bias.requires_grad)
    )
    if tracked or torch._C._functorch.peek_interpreter_stack() is not None:
        y: Tensor = torch.ops.sparse_accel.sparse_linear(*arguments)
    else:
        y = call("sparse_linear", *arguments)
    return y


def _run(name: str, first: Tensor, *arguments: Any) -> Tensor:
    out: Tensor = getattr(kernels() if has_kernels(first) else reference, name)(first, *arguments)
    return out


def _linear_fake(x: Tensor, values: Tensor, bits: Tensor, offsets: Tensor, *rest: Any) -> Tensor:
    rows: int = rest[2]
    return x.new_empty((*x.shape[:-1], rows))


def _unpack_fake(
    values: Tensor, bits: Tensor, offsets: Tensor, scales: Tensor | None, rows: int, columns: int
) -> Tensor:
    return values.new_empty((rows, columns), dtype=torch.float32 if scales is not None else values.dtype)


def _collect_fake(dense: Tensor, bits: Tensor, offsets: Tensor, length: int) -> Tensor:
    return dense.new_empty((length,))


register(
    "sparse_linear",
    "(Tensor x, Tensor values, Tensor bits, Tensor offsets, Tensor? scales, Tensor? bias, SymInt rows, str activation)"
    " -> Tensor",
    lambda *arguments: _run("sparse_linear", *arguments),
    _linear_fake,
)
register(
    "sparse_unpack",
    "(Tensor values, Tensor bits, Tensor offsets, Tensor? scales, SymInt rows, SymInt columns) -> Tensor",
    lambda *arguments: _run("sparse_unpack", *arguments),
    _unpack_fake,
)
register(
    "sparse_collect",
    "(Tensor dense, Tensor bits, Tensor offsets, SymInt length) -> Tensor",
    lambda *arguments: _run("sparse_collect", *arguments),
    _collect_fake,
)


def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, bits, offsets, scales, bias, ctx.rows, ctx.activation = inputs
    ctx.save_for_backward(x, values, bits, offsets, scales, bias)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Dense products with what the bits unpack to: as fast as a dense layer's backward, and one weight's memory."""
    x, values, bits, offsets, scales, bias = ctx.saved_tensors
    if ctx.activation != "none":
        with torch.enable_grad():
            before = torch.ops.sparse_accel.sparse_linear(x, values, bits, offsets, scales, bias, ctx.rows, "none")
            before = before.detach().requires_grad_()
            (grad,) = torch.autograd.grad(reference.ACTIVATIONS[ctx.activation](before), before, grad)
    of_x, of_values, of_bias = None, None, None
    columns = x.shape[-1]
    rows_of_grad = grad.reshape(-1, ctx.rows)
    if ctx.needs_input_grad[0]:
        dense = torch.ops.sparse_accel.sparse_unpack(values, bits, offsets, scales, ctx.rows, columns)
        of_x = (rows_of_grad @ dense.to(grad.dtype)).view(x.shape)
    if ctx.needs_input_grad[1]:
        product = rows_of_grad.t() @ x.reshape(-1, columns)
        of_values = torch.ops.sparse_accel.sparse_collect(product, bits, offsets, values.numel())
    if ctx.needs_input_grad[5]:
        of_bias = rows_of_grad.sum(0)
    return of_x, of_values, None, None, None, of_bias, None, None


def _unpack_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, bits, offsets, _, _, _ = inputs
    ctx.length = values.numel()
    ctx.save_for_backward(bits, offsets)


def _unpack_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    collected = torch.ops.sparse_accel.sparse_collect(grad, *ctx.saved_tensors, ctx.length)
    return collected, None, None, None, None, None


def _collect_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dense, bits, offsets, _ = inputs
    ctx.shape = dense.shape
    ctx.save_for_backward(bits, offsets)


def _collect_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    bits, offsets = ctx.saved_tensors
    return torch.ops.sparse_accel.sparse_unpack(grad.contiguous(), bits, offsets, None, *ctx.shape), None, None, None


def _register_autograd(name: str, backward: Any, context: Any) -> None:
    torch.library.register_autograd(f"sparse_accel::{name}", backward, setup_context=context, lib=LIBRARY)


_register_autograd("sparse_linear", _linear_backward, _linear_context)
_register_autograd("sparse_unpack", _unpack_backward, _unpack_context)
_register_autograd("sparse_collect", _collect_backward, _collect_context)
