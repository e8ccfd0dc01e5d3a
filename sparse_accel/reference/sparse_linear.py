"""Products with sparse weights: unpacked, then as dense ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .bitmask import TILE_COLUMNS, from_tiles, mask_of, places_of, to_tiles

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
}


def sparse_unpack(
    values: Tensor, bits: Tensor, offsets: Tensor, scales: Tensor | None, rows: int, columns: int
) -> Tensor:
    """The dense weight; see :meth:`sparse_accel.ops.Bitmask.unpack`."""
    mask = mask_of(bits)
    kept = values[places_of(mask, offsets, values.element_size())]
    tiles = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    tiles[mask] = kept
    dense = from_tiles(tiles, rows, columns)
    if scales is None:
        return dense.contiguous()
    return dense.float() * scales.repeat_interleave(TILE_COLUMNS, 1)[:, :columns]


def sparse_collect(dense: Tensor, bits: Tensor, offsets: Tensor, length: int) -> Tensor:
    """Of a dense matrix the kept elements where their values stand, zeros between them: the adjoint of unpacking."""
    mask = mask_of(bits)
    out = dense.new_zeros(length)
    out[places_of(mask, offsets, dense.element_size())] = to_tiles(dense)[mask]
    return out


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
    """See :func:`sparse_accel.ops.sparse_linear`."""
    weight = sparse_unpack(values, bits, offsets, scales, rows, x.shape[-1]).float()
    y = functional.linear(x.float(), weight, None if bias is None else bias.float())
    return ACTIVATIONS[activation](y).to(x.dtype)
