"""Tests of several ranks share a pair of processes that stay: to start one is seconds of imports."""

from __future__ import annotations

import functools
import multiprocessing.connection
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = 400  # seconds
_groups: list[Any] = []


def keep_process_groups() -> None:
    """From here on every default process group lives as long as this process.

    DDP holds its group. If that reference is the last, DDP's end joins the group's threads with the GIL in hand, and a
    thread that still has a tensor to free waits for the GIL: torch hangs."""
    start = dist.init_process_group

    @functools.wraps(start)
    def init_process_group(*arguments: Any, **options: Any) -> None:
        start(*arguments, **options)
        _groups.append(dist.group.WORLD)

    dist.init_process_group = init_process_group


def _serve(rank: int, connection: Any) -> None:
    keep_process_groups()
    while True:
        try:
            work, arguments = connection.recv()
        except EOFError:
            return
        try:
            torch.manual_seed(0)
            work(rank, *arguments)
            connection.send(None)
        except BaseException:
            connection.send(traceback.format_exc())


class _Pair:
    """Two processes and the ends of their pipes."""

    def __init__(self) -> None:
        context = mp.get_context("spawn")
        self.ends: list[Any] = []
        self.processes: list[Any] = []
        for rank in range(2):
            end, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, theirs), daemon=True)
            process.start()
            theirs.close()
            self.ends.append(end)
            self.processes.append(process)

    def run(self, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        for end in self.ends:
            end.send((work, arguments))
        waiting = dict(zip(self.ends, range(2), strict=True))
        while waiting:
            ready = multiprocessing.connection.wait(list(waiting), TIMEOUT)
            if not ready:
                raise RuntimeError(f"ranks {sorted(waiting.values())} took longer than {TIMEOUT} s")
            for end in ready:
                rank = waiting.pop(end)
                try:
                    error = end.recv()
                except EOFError:
                    error = "its process ended"
                if error is not None:
                    raise RuntimeError(f"rank {rank} failed: {error}")

    def close(self) -> None:
        for process in self.processes:
            process.kill()


_pairs: list[_Pair] = []


def two_ranks(work: Callable[..., None], *arguments: Any) -> None:
    """``work(rank, *arguments)`` in both; RuntimeError with the traceback if one fails (the next call starts anew).
    `work` makes its process group, and destroys it."""
    if not _pairs:
        _pairs.append(_Pair())
    try:
        _pairs[0].run(work, arguments)
    except BaseException:
        _pairs.pop().close()
        raise
