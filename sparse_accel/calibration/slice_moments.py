"""Second moments of what each slice of a stacked parameter gets to read: the experts of a mixture."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_accel.calibration.moments import Gram
from sparse_accel.calibration.slices import SliceCall


class SliceGram:
    """``X Xᵀ`` of every slice's own inputs.

    Args:
        slices: how many.
        features: of the inputs, D.
        centred: about the means, or about zero.
        dtype, device: of the sums.

    Attributes:
        parts: one :class:`~sparse_accel.calibration.moments.Gram` for each slice.
    """

    def __init__(
        self, slices: int, features: int, *, dtype: torch.dtype, device: torch.device, centred: bool = False
    ) -> None:
        self.parts = [Gram(1, features, centred=centred, dtype=dtype, device=device) for _ in range(slices)]

    def update(self, call: SliceCall) -> None:
        """Add the inputs of a product."""
        for number, rows in zip(call.slices, call.rows, strict=True):
            if len(rows):
                self.parts[number].update(rows.mT[None])

    def all_reduce_(self) -> None:
        """Sum over the ranks."""
        for part in self.parts:
            part.all_reduce_()

    @property
    def gram(self) -> Tensor:
        """[slices, D, D]"""
        return torch.cat([part.gram for part in self.parts])

    @property
    def hessian(self) -> Tensor:
        """The same: the slices share no factor to leave out."""
        return self.gram

    @property
    def count(self) -> int:
        """Inputs of all slices."""
        return sum(part.count for part in self.parts)

    @property
    def idle(self) -> tuple[int, ...]:
        """Slices without inputs."""
        return tuple(number for number, part in enumerate(self.parts) if not part.count)
