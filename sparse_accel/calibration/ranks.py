"""Ranks that fail together and write the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparse_accel.calibration.data import all_reduce_


def rank() -> int:
    """This process's rank in the default group; 0 without one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def broadcast_(tensor: Tensor) -> Tensor:
    """Give every rank what rank 0 has."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def from_first(value: Any) -> Any:
    """What rank 0 has, on every rank."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]
    return value


def of_all(value: Any) -> list[Any]:
    """What every rank has, by rank, on every rank."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        box = [None] * dist.get_world_size()
        dist.all_gather_object(box, value)
        return box
    return [value]


def fewest(count: int, device: torch.device) -> int:
    """The least of the ranks' numbers."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        least = torch.tensor(count, device=device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)
    return count


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Where one rank fails inside, all do: none is left waiting.

    Raises:
        RuntimeError: on the ranks that did not fail themselves.
    """
    failed = torch.zeros((), device=device)
    try:
        yield
    except Exception:
        all_reduce_([failed.fill_(1)])
        raise
    all_reduce_([failed])
    if float(failed):
        raise RuntimeError(f"rank {rank()}: another rank failed; its own message says why")
