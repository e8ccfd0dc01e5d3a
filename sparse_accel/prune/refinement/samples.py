"""Mini-batches to learn from, and inputs that are held out to judge by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_accel.calibration.batches import HELD_BYTES, Batches
from sparse_accel.calibration.data import Calibration
from sparse_accel.channels.call import tree_tensors

EVERY = 8  # of the samples, or batches, one is held out
MOST_HELD = 512  # samples
BATCH = 64


class Samples:
    """Calibration inputs in mini-batches of a random order, a part of them held out.

    A tensor's samples, and with ``batch_size`` those of all batches, are drawn one by one; other batches stay whole,
    for only the caller knows along which dimension their samples lie. What a function returns is drawn anew for every
    pass, and what is more than ``HELD_BYTES`` and can only be iterated over is read again, in its own order.

    Args:
        data: the batches.
        batch_size: of the mini-batches; None: ``BATCH`` of a tensor's samples, and other batches as they are.
        held_out: what to judge by; None: every eighth sample or batch of ``data``.
        generator: of the order.

    Attributes:
        held: batches that are held out.
        told: what they are, in words.
        count: mini-batches in a pass; of a function, in the first one.
        least: samples of the smallest mini-batch, as far as is known.

    Raises:
        ValueError: ``batch_size`` is given and the batches' samples do not lie along the first dimension of each of
            their tensors, or have different shapes; the message says which.
    """

    def __init__(
        self, data: Batches, batch_size: int | None, held_out: Calibration | None, generator: torch.Generator
    ) -> None:
        self.generator = generator
        self.data = data
        self.batches = _listed(data)
        single = isinstance(data.inputs, Tensor)
        self.size = BATCH if batch_size is None and single else batch_size
        self.rows: list[tuple[int, int]] = []
        self.held: list[Any] = [] if held_out is None else list(held_out.batches())
        self.told = f"{len(self.held)} batches given" if self.held else ""
        if self.size is not None:
            self._by_sample(self.size)
        else:
            self._by_batch()

    def _by_sample(self, size: int) -> None:
        if self.batches is None:
            raise ValueError(
                f"batch_size: expected None: more than {HELD_BYTES >> 20} MB that can only be iterated over, or a "
                "function's data, are taken in their own batches"
            )
        counts = _counts(self.batches)
        self.rows = [(number, row) for number, count in enumerate(counts) for row in range(count)]
        total = len(self.rows)
        if not self.held:
            order = torch.randperm(total, generator=self.generator, device="cpu").tolist()
            few = min(MOST_HELD, total // EVERY)
            chosen = sorted(order[: max(1, few)]) if total > 1 else [0]
            self.told = f"{len(chosen)} of {total} samples"
            rows = [self.rows[index] for index in chosen]
            step = max(size, BATCH)
            self.held = [self._gathered(rows[start : start + step]) for start in range(0, len(rows), step)]
            if total > 1:
                out = set(chosen)
                self.rows = [row for index, row in enumerate(self.rows) if index not in out]
            else:
                self.told += ", the same that is learnt from"
        self.count = max(1, len(self.rows) // size)
        self.least = min(size, len(self.rows))

    def _by_batch(self) -> None:
        if self.batches is not None:
            total = len(self.batches)
            if not self.held:
                # Batches come in the order of their checksums: every eighth one is as random as any.
                few = [number for number in range(total) if number % EVERY == 1] if total > 1 else [0]
                self.held = [self.batches[number] for number in few]
                self.told = f"{len(few)} of {total} batches"
                if total > 1:
                    self.batches = [batch for number, batch in enumerate(self.batches) if number not in few]
                else:
                    self.told += ", the same that is learnt from"
            self.count = len(self.batches)
            self.least = min(map(_first, self.batches))
            return
        total = sum(1 for _ in self.data.batches())
        if not self.held:
            if total > 1:
                self.held = list(self.data.part(lambda number: number % EVERY == 1).batches())
                self.data = self.data.part(lambda number: number % EVERY != 1)
            else:
                self.held = list(self.data.batches())
            self.told = f"{len(self.held)} of {total} batches" + (", the same that is learnt from" * (total == 1))
        self.count = max(1, total - (total > 1) * len(range(1, total, EVERY)))
        self.least = min(map(_first, self.held))

    def one_pass(self) -> Iterator[Any]:
        """The mini-batches of a pass, in a new order; rests that do not fill one wait for another pass."""
        if self.size is not None:
            order = torch.randperm(len(self.rows), generator=self.generator, device="cpu").tolist()
            size = min(self.size, len(order))
            for start in range(0, len(order) - size + 1, size):
                yield self._gathered([self.rows[index] for index in order[start : start + size]])
        elif self.batches is not None:
            for index in torch.randperm(len(self.batches), generator=self.generator, device="cpu").tolist():
                yield self.batches[index]
        else:
            yield from self.data.batches()

    def endless(self) -> Iterator[Any]:
        """Pass after pass."""
        while True:
            yield from self.one_pass()

    def _gathered(self, rows: Sequence[tuple[int, int]]) -> Any:
        assert self.batches is not None
        picked = [(self.batches[number], row) for number, row in rows]
        return _joined([batch for batch, _ in picked], [row for _, row in picked])


def _listed(data: Batches) -> list[Any] | None:
    """All batches, if they may be kept: they are there anyway, or are few enough."""
    source = data.inputs
    if callable(source) and not isinstance(source, Iterable):
        return None
    if isinstance(source, (Tensor, Sequence, Mapping)):
        return list(data.batches())
    room = HELD_BYTES
    found = []
    for batch in data.batches():
        room -= sum(tensor.nbytes for tensor in tree_tensors(batch))
        if room < 0:
            return None
        found.append(batch)
    return found


def _first(batch: Any) -> int:
    """The first dimension of a batch's first tensor."""
    return next((tensor.shape[0] for tensor in tree_tensors(batch) if tensor.dim()), 0)


def _counts(batches: Sequence[Any]) -> list[int]:
    """Samples of every batch, along the first dimension of its tensors.

    Raises:
        ValueError: there is none, or the batches do not fit together.
    """
    counts = []
    like: list[tuple[torch.Size, torch.dtype]] | None = None
    for batch in batches:
        tensors = list(tree_tensors(batch))
        sizes = {tensor.shape[:1] for tensor in tensors}
        if len(sizes) != 1 or sizes == {torch.Size()}:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise ValueError(
                f"batch_size: expected tensors with one first dimension in a batch, got {shapes or 'none'}"
            )
        own = [(tensor.shape[1:], tensor.dtype) for tensor in tensors]
        like = own if like is None else like
        if own != like:
            raise ValueError("batch_size: expected samples of the same shapes in all batches, got others")
        counts.append(tensors[0].shape[0])
    return counts


def _joined(batches: Sequence[Any], rows: Sequence[int]) -> Any:
    """A batch of one sample from each of several."""
    first = batches[0]
    if isinstance(first, Tensor):
        out = torch.stack([batch[row] for batch, row in zip(batches, rows, strict=True)])
        last = first.dim() == 4 and not first.is_contiguous() and _is_channels_last(first)
        return out.contiguous(memory_format=torch.channels_last) if last else out
    if isinstance(first, Mapping):
        return {key: _joined([batch[key] for batch in batches], rows) for key in first}
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(_joined(list(parts), rows) for parts in zip(*batches, strict=True)))
    if isinstance(first, (tuple, list)):
        return type(first)(_joined(list(parts), rows) for parts in zip(*batches, strict=True))
    if any(batch != first for batch in batches):
        raise ValueError(f"batch_size: expected the same {type(first).__name__} in all batches, got others")
    return first


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)
