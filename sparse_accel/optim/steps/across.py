"""Sums over the rows of a group that do not lie in one tensor, or not on one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

FIELDS = ("sizes", "processes", "joins")  # of the steps' dataclasses of tensors, which native ops do not take


class Across(Protocol):
    """Where the groups of a step's tensors lie; numbers of a row are ``[rows, numbers]``."""

    @property
    def sizes(self) -> Sequence[Any]:
        """Elements of the groups of each tensor: a number, or one for each of its rows."""

    def sums(self, values: Sequence[Tensor], extra: Tensor | None = None) -> tuple[list[Tensor], Tensor | None]:
        """What the rows of a group have together, for each row; ``extra`` summed over the processes. One all-reduce."""

    def largest(self, values: Sequence[Tensor]) -> list[Tensor]:
        """As :meth:`sums`: the largest."""


class Parts:
    """Tensors with groups of their own, whose elements lie on several processes.

    Args:
        sizes: elements of a whole group, of each tensor.
        processes: the groups of processes.
    """

    def __init__(self, sizes: Sequence[int], processes: Sequence[Any]) -> None:
        self.sizes, self._processes = list(sizes), list(processes)

    def sums(self, values: Sequence[Tensor], extra: Tensor | None = None) -> tuple[list[Tensor], Tensor | None]:
        """See :class:`Across`."""
        found = self._reduced([*values, *(() if extra is None else (extra.to(values[0]),))], "SUM")
        return found[: len(values)], None if extra is None else found[-1]

    def largest(self, values: Sequence[Tensor]) -> list[Tensor]:
        """See :class:`Across`."""
        return self._reduced(values, "MAX")

    def _reduced(self, values: Sequence[Tensor], kind: str) -> list[Tensor]:
        flat = torch.cat([value.reshape(-1) for value in values])
        for group in self._processes:
            torch.distributed.all_reduce(flat, getattr(torch.distributed.ReduceOp, kind), group=group)
        parts = flat.split([value.numel() for value in values])
        return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]


def across_of(tensors: Any) -> Across | None:
    """Where the groups of a step's tensors lie; None: each in one tensor, on one process."""
    if tensors.joins is not None:
        joins: Across = tensors.joins
        return joins
    return Parts(tensors.sizes, tensors.processes) if tensors.processes else None
