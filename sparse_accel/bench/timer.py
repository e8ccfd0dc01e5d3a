"""How one call is timed: on the CPU by the clock; on a GPU by the device's events, by the clock, and as a graph."""

from __future__ import annotations

import re
import time
from pathlib import Path

import torch

from .case import Call

CYCLES_PER_SECOND = 2e9  # at most: a slower clock makes the wait longer
LONGEST_WAIT = 0.02


class Timer:
    """Times one call with cold caches: a buffer larger than the last cache is read before each.

    A read leaves clean lines: nothing is written back on the call's account. On a GPU the device is then kept waiting
    for longer than the call takes to be enqueued, so that its kernels follow each other between the two events and the
    host's time is not counted; :meth:`wall` counts it.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        size = 4 * last_cache_bytes(self.device)
        self._flush = torch.zeros(size // 8, dtype=torch.float64, device=self.device)
        self._host: dict[int, tuple[Call, float]] = {}  # holds the call, so that its id stays its own

    def __call__(self, call: Call) -> float:
        """Seconds that one call takes: of the device where it is a GPU."""
        if self.device.type != "cuda":
            return self._by_clock(call)
        wait = min(LONGEST_WAIT, 1.5 * self._host_seconds(call) + 5e-5)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.sum()
        torch.cuda._sleep(int(wait * CYCLES_PER_SECOND))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(end) / 1e3

    def wall(self, call: Call) -> float:
        """Seconds on the host's clock, from an idle device until it is idle again."""
        return self._by_clock(call)

    def captured(self, call: Call) -> Call:
        """The call as a CUDA graph, which this replays: its kernels without the host.

        Raises:
            RuntimeError: the call cannot be captured, because it waits for the device.
        """
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(2):  # makes state, loads modules
                call()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def forget(self) -> None:
        """Let go of the calls that were timed, and of their tensors."""
        self._host.clear()

    def _by_clock(self, call: Call) -> float:
        self._flush.sum()
        self._synchronize()
        begin = time.perf_counter()
        call()
        self._synchronize()
        return time.perf_counter() - begin

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _host_seconds(self, call: Call) -> float:
        """How long the host is busy with a call; measured once, on its second run, with nothing else in the queue."""
        if id(call) not in self._host:
            for _ in range(2):
                self._synchronize()
                begin = time.perf_counter()
                call()
                seconds = time.perf_counter() - begin
            self._host[id(call)] = call, seconds
        return self._host[id(call)][1]


def last_cache_bytes(device: torch.device) -> int:
    """Size of the device's last cache; 64 MiB where it is not known."""
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or 64 << 20
    for index in (3, 2):
        path = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size")
        match = re.fullmatch(r"(\d+)([KMG])", path.read_text().strip()) if path.exists() else None
        if match:
            return int(match[1]) << {"K": 10, "M": 20, "G": 30}[match[2]]
    return 64 << 20
