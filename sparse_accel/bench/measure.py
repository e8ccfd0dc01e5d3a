"""Timing: cold caches, contenders interleaved, medians and quartiles, and a copy of the same size beside them.

Each round runs every contender once, in an order that rotates, and each run starts after the caches were flushed; so a
machine that slows down slows all of them alike.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from .case import Call, Case, Row, Settings
from .timer import Timer, last_cache_bytes

MAX_COPY_BYTES = 1 << 30
SLOW_SECONDS = 0.2  # a rival that takes longer has few rounds: its ratio is far from 1, and the time is the others'
SLOW_ROUNDS = 2


class Spread(NamedTuple):
    """Seconds of the rounds: their quartiles."""

    low: float
    median: float
    high: float


def spread_of(seconds: list[float]) -> Spread:
    """Quartiles, each of them a time that was measured or between two.

    Example:
        >>> spread_of([4.0, 1.0, 3.0, 2.0, 5.0])
        Spread(low=2.0, median=3.0, high=4.0)
    """
    if len(seconds) == 1:
        return Spread(seconds[0], seconds[0], seconds[0])
    return Spread(*statistics.quantiles(seconds, n=4, method="inclusive"))


def interleaved(
    contenders: Mapping[str, Call], timer: Callable[[Call], float], settings: Settings
) -> tuple[dict[str, Spread], int]:
    """Seconds of each contender and the number of rounds; two rounds run before, unmeasured. Rivals of the first
    contender that are slow have two rounds."""
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    slow = set()
    for name in names:
        timer(contenders[name])  # makes state, loads modules
        if timer(contenders[name]) > SLOW_SECONDS and name != names[0]:
            slow.add(name)
    begin = time.perf_counter()
    rounds = 0
    while rounds < settings.min_rounds or (rounds < 1000 and time.perf_counter() - begin < settings.seconds):
        shift = rounds % len(names)
        for name in names[shift:] + names[:shift]:
            if rounds < SLOW_ROUNDS or name not in slow:
                times[name].append(timer(contenders[name]))
        rounds += 1
    return {name: spread_of(values) for name, values in times.items()}, rounds


def copy_of(num_bytes: int, device: str) -> tuple[Call, int]:
    """A plain copy that reads and writes ``num_bytes`` in total (1 GiB at most), and what it really moves."""
    count = max(1, min(num_bytes, MAX_COPY_BYTES) // 8)
    source, target = (torch.full((count,), 1.0, dtype=torch.float32, device=device) for _ in range(2))
    return lambda: target.copy_(source), 8 * count


def floor_speed(timer: Timer, settings: Settings) -> float:
    """Bytes per second of a copy that is long enough to have no beginning: what memory gives at best."""
    size = MAX_COPY_BYTES if settings.on_gpu else min(MAX_COPY_BYTES, 8 * last_cache_bytes(timer.device))
    copy, moved = copy_of(size, settings.device)
    return moved / min(timer(copy) for _ in range(7))


def compiled(call: Call, note: Callable[[str], None]) -> Call | None:
    """The call by ``torch.compile``, run once; None, with a note, where that fails (it needs a C++ compiler)."""
    torch.compiler.reset()
    function = torch.compile(call)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function()
    except Exception as error:
        note(f"torch.compile failed: {type(error).__name__}: {str(error).strip().splitlines()[0][:120]}")
        return None
    return function


def measure(
    bench: str, case: Case, settings: Settings, timer: Timer, floor: float, note: Callable[[str], None] = lambda _: None
) -> Row:
    """Run a case with its rivals and a copy.

    Args:
        bench: the name that the row gets.
        case: what to run.
        settings: for how long.
        timer: of the device.
        floor: bytes per second, see :func:`floor_speed`.
        note: is told what could not be done.
    """
    copy, copy_bytes = copy_of(case.bytes_moved, settings.device)
    contenders: dict[str, Call] = {"run": case.run, "copy": copy}
    gpu = settings.on_gpu
    compiles = compiled(case.plain, note) if settings.compiled and case.plain is not None else None
    others = {"twin": case.twin, "peer": case.peer, "compiled": compiles, "adamw": case.adamw}
    contenders.update({name: call for name, call in others.items() if call is not None})
    for name, call in {"graph": case.graph, "peer graph": case.peer_graph}.items() if gpu else ():
        if call is not None:
            contenders[name] = timer.captured(call)
    times, rounds = interleaved(contenders, timer, settings)
    walls: dict[str, Call] = {name: contenders[name] for name in ("run", "peer") if gpu and name in contenders}
    wall = interleaved(walls, timer.wall, settings)[0] if walls else {}
    timer.forget()
    own = times["run"]
    speed = case.bytes_moved / own.median

    def over(name: str) -> float | None:
        return own.median / times[name].median if name in times else None

    return Row(
        bench=bench,
        case=case.name,
        workload=case.workload,
        device=settings.device,
        dtype=settings.dtype,
        microseconds=own.median * 1e6,
        low_microseconds=own.low * 1e6,
        high_microseconds=own.high * 1e6,
        bytes_moved=case.bytes_moved,
        gb_per_s=speed / 1e9,
        percent_of_copy=100 * speed / (copy_bytes / times["copy"].median),
        percent_of_floor=100 * speed / floor,
        copy_microseconds=times["copy"].median * 1e6,
        time_over_twin=over("twin"),
        time_over_peer=over("peer"),
        time_over_compiled=over("compiled"),
        time_over_adamw=over("adamw"),
        peer=case.peer_name,
        rounds=rounds,
        wall_microseconds=_micro(wall.get("run")),
        peer_wall_microseconds=_micro(wall.get("peer")),
        graph_microseconds=_micro(times.get("graph")),
        peer_graph_microseconds=_micro(times.get("peer graph")),
    )


def _micro(spread: Spread | None) -> float | None:
    return None if spread is None else spread.median * 1e6
