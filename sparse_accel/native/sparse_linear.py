"""Products with weights of which only some are kept: shapes, dtypes, and when the dense product is the faster one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._module import check_device, check_dtype, kernels, on_cuda, product, shown

_HALVES = (torch.bfloat16, torch.float16)
_TILE_ROWS = 8
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
    dtype, cuda = x.dtype, on_cuda(values)
    if dtype not in (torch.float32, *_HALVES) or values.dtype not in (torch.int8, dtype):
        check_dtype("sparse_linear", "x", x, (torch.float32, *_HALVES))
        expected = f"expected {shown(dtype)}, as x, or int8, got {shown(values.dtype)}"
        raise TypeError(f"sparse_linear: values: {expected}")
    if x.layout != torch.strided or x.dim() == 0:
        raise ValueError(f"sparse_linear: x: expected a dense tensor [.., columns], got shape {list(x.shape)}")
    if bias is not None and bias.dtype != dtype:
        raise TypeError(f"sparse_linear: bias: expected {shown(dtype)}, got {shown(bias.dtype)}")
    flat = x if x.dim() == 2 else x.reshape(-1 if x.numel() else product(x.shape[:-1]), x.shape[-1])
    if not cuda and dtype != torch.float32:
        flat = flat.to(torch.float32)
        bias = None if bias is None else bias.to(torch.float32)
    flat = flat.contiguous()
    y = flat.new_empty(flat.shape[0], rows)
    if not kernels().sparse_linear(flat, values, bits, offsets, scales, bias, activation, y):
        _by_unpacking(flat, (values, bits, offsets, scales), rows, y)
        kernels().sparse_finish(y, bias, activation)
    if y.dtype != dtype:
        y = y.to(dtype)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], rows)


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
    if rows < 0 or columns < 0:
        raise ValueError(f"sparse_unpack: rows, columns: expected numbers >= 0, got {rows}, {columns}")
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
