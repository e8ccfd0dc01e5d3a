"""Calibration batches that know their number, their padding and whether they are what they were before."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sparse_accel.calibration.data import Calibration, to_device
from sparse_accel.channels.call import tree_tensors

logger = logging.getLogger("sparse_accel")


class Batches(Calibration):
    """Some batches of a calibration, numbered.

    Args:
        calibration: the data.
        keep: of the batches' numbers; None for all.
        padding: key of the batches (mappings) that holds 1 for positions that count and 0 for padding.

    Attributes:
        number: of the batch that is out.
        changed: whether a batch was not what it had been in an earlier pass.
        warned: that padding could not be told apart.
    """

    def __init__(self, calibration: Calibration, keep: Callable[[int], bool] | None, padding: str | None) -> None:
        super().__init__(calibration)
        self.keep = keep
        self.padding = padding
        self.number = -1
        self.changed = False
        self.prints: dict[int, int] = {}
        self.warned = False
        self._mask: Tensor | None = None

    def batches(self, device: torch.device | str | None = None) -> Iterator[Any]:
        empty = True
        for number, batch in enumerate(super().batches()):
            if self.keep is not None and not self.keep(number):
                continue
            empty = False
            self.number = number
            found = fingerprint(batch)
            self.changed |= self.prints.setdefault(number, found) != found
            mask = batch.get(self.padding) if isinstance(batch, Mapping) and self.padding else None
            self._mask = mask != 0 if isinstance(mask, Tensor) and mask.dim() == 2 else None
            yield batch if device is None else to_device(batch, torch.device(device))
        if empty:
            raise ValueError("calibration: expected at least one batch for this part, got none")

    def positions(self, x: Tensor) -> Tensor:
        """``x`` without its padded positions, [N, D], where it has the shape [B, L, D] of the batch's mask."""
        mask = self._mask
        if mask is None or x.dim() < 3 or x.shape[:2] != mask.shape:
            return x
        return x[mask.to(x.device)]

    def padded(self, x: Tensor) -> Tensor | None:
        """Which leading positions of ``x`` are padding, bool [B, L] or, of an ``x`` of shape [B·L, D], [B·L].

        None where the batch has no padding, or ``x`` another shape: then padded positions count, with a warning.
        """
        mask = self._mask
        if mask is None or bool(mask.all()):
            return None
        if x.dim() >= 3 and x.shape[:2] == mask.shape:
            return ~mask
        if x.dim() == 2 and len(x) == mask.numel():
            return ~mask.flatten()
        if not self.warned:
            logger.warning("inputs of shape %s: which are padding cannot be told: all count", tuple(x.shape))
            self.warned = True
        return None


def fingerprint(tree: Any) -> int:
    """A checksum of the tensors' contents.

    Example:
        >>> fingerprint([torch.zeros(2)]) == fingerprint([torch.zeros(2)]) != fingerprint([torch.ones(2)])
        True
    """
    crc = 0
    for tensor in tree_tensors(tree):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        crc = zlib.crc32(str((tuple(tensor.shape), tensor.dtype)).encode(), crc)
        crc = zlib.crc32(flat.view(torch.uint8).numpy().data if flat.numel() else b"", crc)
    return crc
