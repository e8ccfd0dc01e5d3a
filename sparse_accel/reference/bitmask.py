"""The format of sparse weights: kept values and one bit per weight, in tiles; ``csrc/sparse_linear.h`` describes it."""

from __future__ import annotations

import torch
from torch import Tensor

TILE_ROWS, TILE_COLUMNS, PANEL_TILES = 8, 256, 8
VALUE_ALIGN, VALUE_TAIL = 16, 64  # bytes: where a tile's values begin; what follows the last


def tile_counts(rows: int, columns: int) -> tuple[int, int]:
    """How many tiles stand below and beside each other."""
    return -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS)


def tile_order(rows: int, columns: int, device: torch.device) -> Tensor:
    """``[row tiles, column tiles]``: where each tile stands in memory.

    Example:
        >>> tile_order(80, 512, torch.device("cpu")).tolist()[0], tile_order(80, 512, torch.device("cpu")).tolist()[8]
        ([0, 8], [16, 18])
    """
    row_tiles, column_tiles = tile_counts(rows, columns)
    row = torch.arange(row_tiles, device=device)[:, None]
    before = row // PANEL_TILES * PANEL_TILES
    height = (row_tiles - before).clamp(max=PANEL_TILES)
    return before * column_tiles + torch.arange(column_tiles, device=device) * height + row - before


def to_tiles(dense: Tensor) -> Tensor:
    """A matrix as ``[tiles, 8, 256]``, zeros beyond its ends."""
    rows, columns = dense.shape
    row_tiles, column_tiles = tile_counts(rows, columns)
    whole = dense.new_zeros(row_tiles * TILE_ROWS, column_tiles * TILE_COLUMNS)
    whole[:rows, :columns] = dense
    apart = whole.view(row_tiles, TILE_ROWS, column_tiles, TILE_COLUMNS).transpose(1, 2)
    tiles = torch.empty_like(apart.reshape(-1, TILE_ROWS, TILE_COLUMNS))
    tiles[tile_order(rows, columns, dense.device).flatten()] = apart.reshape(-1, TILE_ROWS, TILE_COLUMNS)
    return tiles


def from_tiles(tiles: Tensor, rows: int, columns: int) -> Tensor:
    """The way back from :func:`to_tiles`."""
    row_tiles, column_tiles = tile_counts(rows, columns)
    apart = tiles[tile_order(rows, columns, tiles.device).flatten()]
    apart = apart.view(row_tiles, column_tiles, TILE_ROWS, TILE_COLUMNS).transpose(1, 2)
    return apart.reshape(row_tiles * TILE_ROWS, column_tiles * TILE_COLUMNS)[:rows, :columns]


def bits_of(mask: Tensor) -> Tensor:
    """``[tiles, 8, 256]`` bool as ``[tiles, 256]`` bytes, the lowest bit first."""
    powers = torch.ones((), dtype=torch.uint8, device=mask.device) << torch.arange(8, device=mask.device).byte()
    return (mask.reshape(-1, TILE_ROWS * TILE_COLUMNS // 8, 8) * powers).sum(2, dtype=torch.uint8)


def mask_of(bits: Tensor) -> Tensor:
    """The way back from :func:`bits_of`."""
    places = torch.arange(8, device=bits.device, dtype=torch.uint8)
    return (bits[..., None] >> places & 1).bool().reshape(-1, TILE_ROWS, TILE_COLUMNS)


def places_of(mask: Tensor, offsets: Tensor, element_size: int) -> Tensor:
    """Where the values of the kept weights stand, in the order of ``tiles[mask]``."""
    per_tile = mask.flatten(1).sum(1)
    first = per_tile.cumsum(0) - per_tile
    begin = offsets[:-1].long() * (VALUE_ALIGN // element_size) - first
    return torch.arange(int(per_tile.sum()), device=mask.device) + begin.repeat_interleave(per_tile)


def offsets_of(mask: Tensor, element_size: int) -> Tensor:
    """``[tiles + 1]`` int32: where the tiles' values begin, in units of 16 bytes."""
    unit = VALUE_ALIGN // element_size
    units = (mask.flatten(1).sum(1) + unit - 1) // unit
    return torch.cat([units.new_zeros(1), units.cumsum(0)]).int()
