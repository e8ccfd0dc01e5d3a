"""Products with weights of which only some are kept: shapes, dtypes, and when the dense product is the faster one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._module import check_device, check_dtype, kernels, on_cuda, product, shown

_HALVES = (torch.bfloat16, torch.float16)
_TILE_ROWS = 8
# When a dense product of unpacked weights is faster than one of the kept alone. On a CPU a product of kept weights takes
# about twice as long for each, and unpacking as long as some 25 inputs of the dense one (measured, AVX2, 2048 x 2048).
# On a GPU from some number of inputs on, whatever is kept: dense products have tensor cores.
_DENSE_SHARE, _UNPACK_INPUTS, _DENSE_BATCH_CUDA = 0.5, 25, 16
_UNPACK_TILES = 64  # row tiles that are unpacked at a time


def sparse_linear(
    x: Tensor,
    values: Tensor,
    bits: Tensor,
    offsets: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    rows: int,
    activation: str,
) -> Tensor:
    """``[.., rows]`` of the dtype of x."""
    dtype, parts = x.dtype, (values, bits, offsets, scales)
    if x.layout != torch.strided or x.dim() == 0:
        raise ValueError(f"sparse_linear: x: expected a dense tensor [.., columns], got shape {list(x.shape)}")
    if dtype not in (torch.float32, *_HALVES):
        check_dtype("sparse_linear", "x", x, (torch.float32, *_HALVES))
    if values.dtype not in (torch.int8, dtype):
        expected = f"expected {shown(dtype)}, as x, or int8, got {shown(values.dtype)}"
        raise TypeError(f"sparse_linear: values: {expected}")
    if x.device != values.device:
        raise ValueError(f"sparse_linear: x: expected the device of values, {values.device}, got {x.device}")
    columns = x.shape[-1]
    kept = kernels().sparse_check("sparse_linear", *parts, rows, columns)
    if bias is not None:
        _check_bias(bias, values, dtype, rows)
    shape = (*x.shape[:-1], rows)
    batch = product(shape[:-1])
    flat = x.reshape(batch, columns)
    if on_cuda(values):
        flat, share = flat.contiguous(), 1.0
        dense = batch >= _DENSE_BATCH_CUDA and columns > 0
    else:
        flat = flat.to(torch.float32).contiguous()
        bias = None if bias is None else bias.to(torch.float32)
        share = kept / (values.element_size() * max(1, rows * columns))
        dense = batch * (share - _DENSE_SHARE) >= _UNPACK_INPUTS
    if batch == 0 or rows == 0:
        return x.new_empty(shape)
    y = flat.new_empty(batch, rows)
    if dense:
        _by_unpacking(flat, parts, rows, y)
        kernels().sparse_finish(y, bias, activation)
    else:
        kernels().sparse_linear(flat, *parts, bias, activation, y)
    return y.to(dtype).view(shape)


def _check_bias(bias: Tensor, values: Tensor, dtype: torch.dtype, rows: int) -> None:
    if bias.dtype != dtype:
        raise TypeError(f"sparse_linear: bias: expected {shown(dtype)}, got {shown(bias.dtype)}")
    if bias.device != values.device:
        raise ValueError(f"sparse_linear: bias: expected device {values.device}, got {bias.device}")
    if bias.layout != torch.strided or bias.shape != (rows,) or not bias.is_contiguous():
        raise ValueError(
            f"sparse_linear: bias: expected a contiguous tensor of shape [{rows}], got shape {list(bias.shape)}"
        )


def _by_unpacking(x: Tensor, parts: tuple[Any, ...], rows: int, y: Tensor) -> None:
    """y = x W^T with some row tiles of W dense at a time."""
    tiles = -(-rows // _TILE_ROWS)
    for first in range(0, tiles, _UNPACK_TILES):
        last = min(first + _UNPACK_TILES, tiles)
        of_rows = slice(first * _TILE_ROWS, min(last * _TILE_ROWS, rows))
        dense = x.new_empty(of_rows.stop - of_rows.start, x.shape[1])
        kernels().sparse_unpack(*parts, rows, first, last, dense)
        y[:, of_rows] = torch.mm(x, dense.T)


def sparse_unpack(
    values: Tensor, bits: Tensor, offsets: Tensor, scales: Tensor | None, rows: int, columns: int
) -> Tensor:
    """The dense weight ``[rows, columns]``, of values' dtype or, of int8, float32."""
    kernels().sparse_check("sparse_unpack", values, bits, offsets, scales, rows, columns)
    dtype = torch.float32 if values.dtype == torch.int8 else values.dtype
    # The kernels of the CPU write float32.
    dense = values.new_empty((rows, columns), dtype=dtype if on_cuda(values) else torch.float32)
    kernels().sparse_unpack(values, bits, offsets, scales, rows, 0, -(-rows // _TILE_ROWS), dense)
    return dense.to(dtype)


def sparse_collect(dense: Tensor, bits: Tensor, offsets: Tensor, length: int) -> Tensor:
    """``[length]`` of the dtype of dense."""
    if dense.layout != torch.strided or dense.dim() != 2:
        raise ValueError(f"sparse_collect: dense: expected a matrix, got shape {list(dense.shape)}")
    check_dtype("sparse_collect", "dense", dense, (torch.float32, *_HALVES))
    check_device("sparse_collect", "dense", dense)
    values = dense.new_zeros(length)
    kernels().sparse_collect(dense.contiguous(), bits, offsets, values)
    return values
