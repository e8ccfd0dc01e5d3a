"""Which inputs of a model's modules follow a mask: found by cutting the mask and looking whose shapes change."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("sparse_accel")

Shapes = Mapping[tuple[str, int], torch.Size]  # by module and number of the call
Layouts = dict[tuple[str, int], str]  # "" where a call does not follow the mask
MOST_RUNS = 64


def follow_samples(run: Callable[[Mapping[str, Any]], Shapes], batch: Mapping[str, Any], key: str) -> Layouts | None:
    """Cut a sample off a batch whose tensors all have the samples first.

    Args:
        run: the shapes that modules are shown of a batch.
        batch: with the mask.
        key: of the mask, [batch, length].

    Returns:
        How the positions lie in every call's input; None where that does not run.
    """
    count, length = batch[key].shape
    if count < 2:
        return None
    cut = {name: _cut(item, 0) if _size(item, 0) == count else item for name, item in batch.items()}
    try:
        before, after = run(batch), run(cut)
    except Exception as error:
        logger.debug("a batch with a sample less does not run: %s", error)
        return None
    return {
        call: _layout(shape, after.get(call), (count, length), (count - 1, length)) for call, shape in before.items()
    }


def follow_inputs(
    run: Callable[[Mapping[str, Any]], Shapes], batch: Mapping[str, Any], key: str, names: Collection[str]
) -> Layouts | None:
    """Cut a position off the mask and off the inputs that are known to be of its sequence, [batch, length, ...].

    Args:
        run, batch, key: see :func:`follow_samples`.
        names: of these inputs.

    Returns:
        How the positions lie in every call's input; None where that does not run.
    """
    count, length = batch[key].shape
    if length < 2:
        return None
    cut = {n: _cut(t, 1) if n == key or (n in names and _size(t, 1) == length) else t for n, t in batch.items()}
    try:
        before, after = run(batch), run(cut)
    except Exception as error:
        logger.debug("a sequence with a position less does not run: %s", error)
        return None
    return {
        call: _layout(shape, after.get(call), (count, length), (count, length - 1)) for call, shape in before.items()
    }


def follow_length(run: Callable[[Mapping[str, Any]], Shapes], batch: Mapping[str, Any], key: str) -> Layouts | None:
    """Cut a position off the mask, and off as few of the other inputs as need be for the model to run.

    Args:
        run, batch, key: see :func:`follow_samples`.

    Returns:
        How the positions lie in every call's input; None where that is not told: the mask alone can be cut, nothing
        runs, or several ways do and differ.
    """
    count, length = batch[key].shape
    if length < 3:  # what is left of two positions, one, is broadcast
        return None
    others = {name: axes for name, item in batch.items() if name != key and (axes := _axes(item, length))}
    choices = [[None, *axes] for axes in others.values()]
    ways = sorted(itertools.product(*choices), key=lambda way: sum(axis is not None for axis in way))
    before: Shapes | None = None
    answer: Layouts | None = None
    size = None
    for way in ways[:MOST_RUNS]:
        changes = sum(axis is not None for axis in way)
        if size is not None and changes > size:
            break
        cut = {**batch, key: _cut(batch[key], 1)}
        for name, axis in zip(others, way, strict=True):
            if axis is not None:
                cut[name] = _cut(batch[name], axis)
        try:
            after = run(cut)
            before = run(batch) if before is None else before
        except Exception as error:
            logger.debug("a mask with a position less does not run with %s: %s", way, error)
            continue
        if not changes:
            return None
        size = changes
        found = {
            call: _layout(shape, after.get(call), (count, length), (count, length - 1))
            for call, shape in before.items()
        }
        if answer is not None and found != answer:
            return None
        answer = found
    return answer


def _layout(before: torch.Size, after: torch.Size | None, whole: tuple[int, int], cut: tuple[int, int]) -> str:
    """How the positions of a mask of size ``whole`` lie in an input, given its shape with a mask of size ``cut``."""
    if after is None or len(before) != len(after):
        return ""
    if len(before) >= 3 and tuple(before[:2]) == whole and tuple(after[:2]) == cut:
        return "batch first"
    if len(before) >= 3 and tuple(before[:2]) == whole[::-1] and tuple(after[:2]) == cut[::-1]:
        return "length first"
    flat = len(before) == 2 and before[0] == whole[0] * whole[1] and after[0] == cut[0] * cut[1]
    return "flat" if flat else ""


def _axes(item: Any, length: int) -> list[int]:
    return [axis for axis in (0, 1) if _size(item, axis) == length]


def _size(item: Any, axis: int) -> int:
    return item.shape[axis] if isinstance(item, Tensor) and item.dim() > axis else -1


def _cut(item: Tensor, axis: int) -> Tensor:
    return item.narrow(axis, 0, item.shape[axis] - 1)
