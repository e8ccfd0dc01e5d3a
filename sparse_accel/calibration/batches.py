"""Calibration batches in an order of their own, that know their number, their padding and whether they changed."""

from __future__ import annotations

import copy
import hashlib
import inspect
import logging
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.calibration.data import Calibration, to_device
from sparse_accel.calibration.padding import Padding
from sparse_accel.channels.call import tree_tensors

logger = logging.getLogger("sparse_accel")

HELD_BYTES = 1 << 29  # of batches that can only be had one after the other


class Batches(Calibration):
    """The batches of a calibration, numbered by their contents: the same in whatever order the data come.

    Sums of floating-point numbers depend on the order of their terms, and "every eighth batch" on where one begins to
    count. So the batches are visited in the order of their checksums. Tensors and sequences are entered anywhere; what
    can only be iterated over (a DataLoader) is read once and held, up to ``HELD_BYTES``; beyond that it is read again
    for every pass and taken in its own order, with a warning. What a function returns is ordered in every pass anew.

    Args:
        calibration: the data.
        model: tuples and lists are cut to as many elements as its ``forward`` takes, with a warning.
        padding: which positions of the batches count.

    Attributes:
        number: of the batch that is out.
        fresh: whether the batch that is out had not been there in an earlier pass.
        changed: whether any batch was not what it had been in an earlier pass.
    """

    def __init__(
        self, calibration: Calibration, model: nn.Module | None = None, padding: Padding | None = None
    ) -> None:
        super().__init__(calibration)
        self.padding = Padding(None) if padding is None else padding
        self.number = -1
        self.changed = False
        self.prints: dict[int, int] = {}
        self._keep: Callable[[int], bool] | None = None
        self._ordered = _Ordered(calibration, math.inf if model is None else _positional(model))

    def part(self, keep: Callable[[int], bool]) -> Batches:
        """The batches of some numbers, which stay theirs."""
        out = copy.copy(self)
        out._keep, out.prints = keep, dict(self.prints)
        return out

    def batches(self, device: torch.device | str | None = None) -> Iterator[Any]:
        empty = True
        for number, (found, batch) in enumerate(self._ordered):
            if self._keep is not None and not self._keep(number):
                continue
            empty = False
            self.number = number
            before = self.prints.get(number)
            self.fresh = before != found
            self.changed |= before is not None and self.fresh
            self.prints.setdefault(number, found)
            self.padding.enter(batch)
            yield batch if device is None else to_device(batch, torch.device(device))
        if empty:
            which = "" if self._keep is None else " for this part"
            raise ValueError(f"calibration: expected at least one batch{which}, got none")

    def positions(self, name: str, x: Tensor, call: int | None = None) -> Tensor:
        """``x`` without its padded positions, [N, D]; x itself where it has none.

        Args:
            name: of the module whose input it is; "" for an output of the model.
            x: [..., D]
            call: number of the module's call for this batch, or of the output; None: the next.
        """
        chosen = self.padding.chosen(name, x.shape, call)
        return x if chosen is None else x.reshape(-1, x.shape[-1])[chosen.to(x.device)]

    def padded(self, name: str, x: Tensor) -> Tensor | None:
        """Which positions of ``x`` are padding, bool of its leading shape; None where it has none.

        Args:
            name: of the module whose input it is.
            x: [..., D]
        """
        chosen = self.padding.chosen(name, x.shape)
        return None if chosen is None or bool(chosen.all()) else ~chosen.reshape(x.shape[:-1])


class _Ordered(Calibration):
    """Batches with their checksums, in the order of these."""

    def __init__(self, calibration: Calibration, most: float) -> None:
        super().__init__(calibration)
        self.most = most
        self._held: list[Any] | None = None
        self._order: list[int] | None = None
        self._told = False

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        anew = callable(self.inputs) and not isinstance(self.inputs, Iterable)
        items = self._items() if self._held is None else self._held
        take: Callable[[Any], Any] = self._inputs if self._held is None else _same
        if not isinstance(items, Sequence):
            held, rest = self._hold(iter(items))
            if rest is not None:
                self._tell(
                    f"calibration: more than {HELD_BYTES >> 20} MB that can only be iterated over: taken in its own "
                    "order; of another order, results differ in their rounding"
                )
                for batch in chain(held, rest):
                    yield fingerprint(batch), batch
                return
            take, items = _same, held
            self._held = None if anew else held
        order = self._order
        if order is None:
            order = _order_of([partial(take, item) for item in items])
            self._order = None if anew else order
        for index in order:
            batch = take(items[index])
            yield fingerprint(batch), batch

    def _hold(self, items: Iterator[Any]) -> tuple[list[Any], Iterator[Any] | None]:
        """All batches, copied (their memory may be used again); or those that fit, and the rest."""
        held: list[Any] = []
        room = HELD_BYTES
        for item in items:
            batch = self._inputs(item)
            room -= sum(tensor.nbytes for tensor in tree_tensors(batch))
            if room < 0:
                return held, chain([batch], map(self._inputs, items))
            held.append(_copied(batch))
        return held, None

    def _inputs(self, item: Any) -> Any:
        batch = super()._inputs(item)
        if isinstance(batch, (tuple, list)) and len(batch) > self.most:
            self._tell(
                f"calibration: items have {len(batch)} elements, the model's forward takes {self.most}: the leading "
                "ones are used; Calibration(data, select=lambda item: ...) picks others"
            )
            return tuple(batch[: int(self.most)])
        return batch

    def _tell(self, message: str) -> None:
        if not self._told:
            logger.warning(message)
        self._told = True


def _same(item: Any) -> Any:
    return item


def _order_of(batches: Sequence[Callable[[], Any]]) -> list[int]:
    """Indices by checksum; equal ones by all that can be told of the contents."""
    prints = [fingerprint(batch()) for batch in batches]
    count = Counter(prints)

    def key(index: int) -> tuple[int, bytes]:
        found = prints[index]
        return found, _digest(batches[index]()) if count[found] > 1 else b""

    return sorted(range(len(prints)), key=key)


def _positional(model: nn.Module) -> float:
    """How many positional inputs a model's ``forward`` takes."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return math.inf
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return math.inf
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in kinds for parameter in parameters)


def _copied(tree: Any) -> Any:
    """Nested tuples, lists and mappings with copies of their tensors."""
    if isinstance(tree, Tensor):
        return tree.clone()
    if isinstance(tree, Mapping):
        return {key: _copied(item) for key, item in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*map(_copied, tree))
    return type(tree)(map(_copied, tree)) if isinstance(tree, (tuple, list)) else tree


def _strided(tensor: Tensor) -> Iterator[Tensor]:
    """The dense tensors that a tensor consists of, on the CPU."""
    tensor = tensor.detach()
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        yield from (tensor.indices().cpu(), tensor.values().cpu())
    elif tensor.layout is not torch.strided:
        yield tensor.to_dense().cpu()
    else:
        yield tensor.resolve_conj().resolve_neg().cpu()


def fingerprint(tree: Any) -> int:
    """A checksum of the tensors' contents.

    Example:
        >>> fingerprint([torch.zeros(2)]) == fingerprint([torch.zeros(2)]) != fingerprint([torch.ones(2)])
        True
    """
    crc = 0
    for tensor in tree_tensors(tree):
        crc = zlib.crc32(str((tuple(tensor.shape), tensor.dtype)).encode(), crc)
        for part in _strided(tensor):
            flat = part.contiguous().reshape(-1)
            crc = zlib.crc32(flat.view(torch.uint8).numpy().data if flat.numel() else b"", crc)
    return crc


def _digest(tree: Any) -> bytes:
    """A longer checksum, of structure and plain values too."""
    digest = hashlib.blake2b()

    def add(item: Any) -> None:
        if isinstance(item, Tensor):
            digest.update(str((tuple(item.shape), item.dtype)).encode())
            for part in _strided(item):
                flat = part.contiguous().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
        elif isinstance(item, Mapping):
            for key, value in item.items():
                digest.update(repr(key).encode())
                add(value)
        elif isinstance(item, (tuple, list)):
            digest.update(f"{type(item).__name__} {len(item)}".encode())
            for value in item:
                add(value)
        else:
            digest.update(repr(item).encode())

    add(tree)
    return digest.digest()
