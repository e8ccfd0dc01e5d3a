"""The format of sparse weights: kept values and one bit per weight, in tiles that a kernel reads once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparse_accel.reference import bitmask as twin

VALUE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Bitmask(NamedTuple):
    """A weight ``[rows, columns]`` of which only some elements are kept.

    A tile is 8 rows of 256 columns; ``csrc/sparse_linear.h`` has their order. Made by :meth:`pack`.

    Attributes:
        values: ``[V]`` float32, bfloat16, float16 or int8: each tile's kept values, row after row, from a 16-byte
            boundary on, with zeros between the tiles and 64 bytes of them at the end.
        bits: ``[tiles, 256]`` uint8: one bit per weight, 32 bytes a row, the lowest bit first.
        offsets: ``[tiles + 1]`` int32: where each tile's values begin, and the last one's end, in units of 16 bytes.
        scales: of int8 values, ``[rows, tiles in a row]`` float32: of each row and 256 columns. None for others.
        rows: outputs.
        columns: inputs.
    """

    values: Tensor
    bits: Tensor
    offsets: Tensor
    scales: Tensor | None
    rows: int
    columns: int

    @staticmethod
    def pack(weight: Tensor, mask: Tensor | None = None, *, int8: bool = False) -> Bitmask:
        """A dense weight in the format.

        Args:
            weight: ``[rows, columns]`` float32, bfloat16 or float16.
            mask: bool ``[rows, columns]``: what is kept, zeros among it too; weights outside are dropped. None: what
                is not zero.
            int8: keep 8 bits of each value: ``round(w / scale)`` with the largest magnitude of each row's 256 columns
                as 127 scales. Not for training.

        Raises:
            ValueError: shapes or devices that do not fit, or with ``int8`` values that are not finite.
            TypeError: an unsupported dtype.

        Example:
            >>> packed = Bitmask.pack(torch.tensor([[0.0, 1.5, 0.0], [2.0, 0.0, 3.0]]))
            >>> packed.values[:3].tolist(), packed.kept, packed.bits[0, [0, 32]].tolist()
            ([1.5, 2.0, 3.0], 3, [2, 5])
        """
        if weight.layout != torch.strided or weight.dim() != 2:
            raise ValueError(f"weight: expected a dense matrix, got shape {list(weight.shape)} with {weight.layout}")
        if weight.dtype not in VALUE_DTYPES:
            raise TypeError(f"weight: expected float32, bfloat16 or float16, got {weight.dtype}")
        if mask is not None:
            if mask.dtype != torch.bool:
                raise TypeError(f"mask: expected torch.bool, got {mask.dtype}")
            if mask.shape != weight.shape or mask.device != weight.device:
                came = f"{list(mask.shape)} on {mask.device}"
                raise ValueError(f"mask: expected shape {list(weight.shape)} on {weight.device}, got {came}")
        weight = weight.detach()
        rows, columns = weight.shape
        tiles = twin.to_tiles(weight)
        kept = twin.to_tiles(weight != 0 if mask is None else mask)
        scales = None
        if int8:
            if not bool(torch.isfinite(weight).all()):
                raise ValueError("weight: expected finite numbers with int8=True, got NaN or infinity")
            whole = torch.nn.functional.pad(weight.float(), (0, -columns % twin.TILE_COLUMNS))
            if mask is not None:
                whole[:, :columns].mul_(mask)
            scales = (
                whole.view(rows, -1, twin.TILE_COLUMNS).abs().amax(2) / 127 if columns else whole.new_zeros(rows, 0)
            )
            divisors = scales.masked_fill(scales == 0, 1.0).repeat_interleave(twin.TILE_COLUMNS, 1)[:, :columns]
            tiles = twin.to_tiles((weight.float() / divisors).round().clamp(-127, 127).to(torch.int8))
        size = tiles.element_size()
        offsets = twin.offsets_of(kept, size)
        end = int(offsets[-1]) * twin.VALUE_ALIGN
        values = tiles.new_zeros((end + twin.VALUE_TAIL) // size)
        values[twin.places_of(kept, offsets, size)] = tiles[kept]
        return Bitmask(values, twin.bits_of(kept), offsets, scales, rows, columns)

    def unpack(self) -> Tensor:
        """The dense weight ``[rows, columns]``, of the values' dtype, float32 of int8. Differentiable.

        Example:
            >>> w = torch.tensor([[0.0, 1.5], [2.0, 0.0]])
            >>> torch.equal(Bitmask.pack(w).unpack(), w)
            True
        """
        dense: Tensor = torch.ops.sparse_accel.sparse_unpack(*self)
        return dense

    @property
    def mask(self) -> Tensor:
        """What is kept, bool ``[rows, columns]``."""
        return twin.from_tiles(twin.mask_of(self.bits), self.rows, self.columns).contiguous()

    @property
    def kept(self) -> int:
        """How many weights are kept."""
        return int(twin.mask_of(self.bits).sum())

    @property
    def nbytes(self) -> int:
        """Bytes of values, bits, offsets and scales."""
        return sum(part.nbytes for part in self[:4] if part is not None)

    def check(self) -> Bitmask:
        """Itself.

        Raises:
            ValueError: the parts do not belong together: shapes, dtypes, or offsets that are not what the bits say.
        """
        tiles = self.tiles(self.rows, self.columns)
        if self.bits.dtype != torch.uint8 or list(self.bits.shape) != [tiles, twin.TILE_ROWS * twin.TILE_COLUMNS // 8]:
            raise ValueError(f"bits: expected uint8 [{tiles}, 256], got {self.bits.dtype} {list(self.bits.shape)}")
        kept = twin.mask_of(self.bits)
        inside = twin.to_tiles(torch.ones(self.rows, self.columns, dtype=torch.bool, device=self.bits.device))
        if bool((kept & ~inside).any()):
            raise ValueError(f"bits: expected none outside of {self.rows} rows and {self.columns} columns")
        size = self.values.element_size()
        expected = twin.offsets_of(kept, size)
        if self.offsets.dtype != torch.int32 or not torch.equal(self.offsets, expected):
            raise ValueError("offsets: expected those of the bits, got others")
        length = (int(expected[-1]) * twin.VALUE_ALIGN + twin.VALUE_TAIL) // size
        if self.values.dtype not in (*VALUE_DTYPES, torch.int8) or list(self.values.shape) != [length]:
            came = f"{self.values.dtype} {list(self.values.shape)}"
            raise ValueError(f"values: expected [{length}] of float32, bfloat16, float16 or int8, got {came}")
        if (self.scales is None) != (self.values.dtype != torch.int8):
            raise ValueError("scales: expected with int8 values, and only with these")
        return self

    @staticmethod
    def tiles(rows: int, columns: int) -> int:
        """How many tiles a weight has."""
        row_tiles, column_tiles = twin.tile_counts(rows, columns)
        return row_tiles * column_tiles
