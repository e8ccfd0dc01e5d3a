"""Timing for the benches: cold caches, contenders interleaved, medians, and a copy of the same size beside them.

A case is one op on one workload with its rivals. Each round runs every contender once, in an order that rotates, and
each run starts after the caches were flushed; so a machine that slows down slows all of them alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import sparse_accel as sa

from .report import BenchReport
from .timer import Timer
from .workloads import WORKLOADS

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULT_WORKLOADS = ("resnet50", "vit_b_block", "large", "many_small")
MAX_COPY_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Case:
    """One op on one workload.

    Args:
        name: what is run, such as ``"l2 by input"``.
        workload: the size's name.
        run: one call of the op.
        bytes_moved: bytes that the op must read and write at least.
        twin: the same in plain PyTorch (:mod:`sparse_accel.reference`).
        peer: what a user of PyTorch would call instead.
        peer_name: the peer, in words.
        graph: the same call, ready to be captured in a CUDA graph; None where it cannot be, or is not on a GPU.
        peer_graph: the peer's.
    """

    name: str
    workload: str
    run: Callable[[], object]
    bytes_moved: int
    twin: Callable[[], object] | None = None
    peer: Callable[[], object] | None = None
    peer_name: str = ""
    graph: Callable[[], object] | None = None
    peer_graph: Callable[[], object] | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A measured case; times are medians in microseconds, ratios are this op's time over the other's.

    On a GPU ``microseconds`` are the device's, with the host out of the way; ``wall`` is the time on the host's clock
    until the device is done, ``graph`` that of replaying the call as a CUDA graph.
    """

    bench: str
    case: str
    workload: str
    device: str
    dtype: str
    microseconds: float
    bytes_moved: int
    gb_per_s: float
    percent_of_copy: float
    copy_microseconds: float
    time_over_twin: float | None
    time_over_peer: float | None
    peer: str
    rounds: int
    wall_microseconds: float | None = None
    peer_wall_microseconds: float | None = None
    graph_microseconds: float | None = None
    peer_graph_microseconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to run: device, dtype, workloads, and for how long."""

    device: str = "cpu"
    dtype: str = "float32"
    workloads: tuple[str, ...] = DEFAULT_WORKLOADS
    seconds: float = 3.0
    min_rounds: int = 7

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


CaseMaker = Callable[[Settings], Iterator[Case]]


def interleaved(
    contenders: Mapping[str, Callable[[], object]], timer: Callable[[Callable[[], object]], float], settings: Settings
) -> tuple[dict[str, float], int]:
    """Median seconds of each contender and the number of rounds; two rounds run before, unmeasured."""
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        for _ in range(2):
            timer(contenders[name])
    begin = time.perf_counter()
    rounds = 0
    while rounds < settings.min_rounds or (rounds < 1000 and time.perf_counter() - begin < settings.seconds):
        shift = rounds % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(timer(contenders[name]))
        rounds += 1
    return {name: statistics.median(values) for name, values in times.items()}, rounds


def copy_of(num_bytes: int, device: str) -> tuple[Callable[[], object], int]:
    """A plain copy that reads and writes ``num_bytes`` in total (1 GiB at most), and what it really moves."""
    count = max(1, min(num_bytes, MAX_COPY_BYTES) // 8)
    source, target = (torch.full((count,), 1.0, dtype=torch.float32, device=device) for _ in range(2))
    return lambda: target.copy_(source), 8 * count


def measure(bench: str, case: Case, settings: Settings, timer: Timer) -> Row:
    """Run a case with its rivals and a copy."""
    copy, copy_bytes = copy_of(case.bytes_moved, settings.device)
    contenders = {"run": case.run, "copy": copy}
    if case.twin is not None:
        contenders["twin"] = case.twin
    if case.peer is not None:
        contenders["peer"] = case.peer
    gpu = settings.on_gpu
    for name, call in {"graph": case.graph, "peer graph": case.peer_graph}.items() if gpu else ():
        if call is not None:
            contenders[name] = timer.captured(call)
    seconds, rounds = interleaved(contenders, timer, settings)
    walls = {name: contenders[name] for name in ("run", "peer") if gpu and name in contenders}
    wall = interleaved(walls, timer.wall, settings)[0] if walls else {}
    timer.forget()
    speed = case.bytes_moved / seconds["run"]
    return Row(
        bench=bench,
        case=case.name,
        workload=case.workload,
        device=settings.device,
        dtype=settings.dtype,
        microseconds=seconds["run"] * 1e6,
        bytes_moved=case.bytes_moved,
        gb_per_s=speed / 1e9,
        percent_of_copy=100 * speed / (copy_bytes / seconds["copy"]),
        copy_microseconds=seconds["copy"] * 1e6,
        time_over_twin=seconds["run"] / seconds["twin"] if "twin" in seconds else None,
        time_over_peer=seconds["run"] / seconds["peer"] if "peer" in seconds else None,
        peer=case.peer_name,
        rounds=rounds,
        wall_microseconds=_micro(wall.get("run")),
        peer_wall_microseconds=_micro(wall.get("peer")),
        graph_microseconds=_micro(seconds.get("graph")),
        peer_graph_microseconds=_micro(seconds.get("peer graph")),
    )


def _micro(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e6


HEADINGS = ("case", "workload", "µs", "MB", "GB/s", "% of copy", "time / twin", "time / peer", "peer")
GPU_HEADINGS = ("wall µs", "of peer", "graph µs", "of peer")


def headings(settings: Settings) -> tuple[str, ...]:
    """Of a table's columns."""
    return (*HEADINGS[:-1], *GPU_HEADINGS, HEADINGS[-1]) if settings.on_gpu else HEADINGS


def format_row(row: Row) -> tuple[str, ...]:
    """A row's cells, in the order of the headings."""

    def number(value: float | None, digits: int = 3) -> str:
        return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.{digits}f}"

    times = (row.wall_microseconds, row.peer_wall_microseconds, row.graph_microseconds, row.peer_graph_microseconds)
    return (
        row.case,
        row.workload,
        number(row.microseconds, 1),
        f"{row.bytes_moved / 1e6:,.1f}",
        f"{row.gb_per_s:.1f}",
        f"{row.percent_of_copy:.0f}",
        number(row.time_over_twin),
        number(row.time_over_peer),
        *((number(time, 1) for time in times) if row.wall_microseconds is not None else ()),
        row.peer,
    )


def format_line(cells: Sequence[str]) -> str:
    """Cells padded to the table's column widths: names to the left, numbers to the right."""
    widths = (26, 12, 10, 9, 8, 10, 12, 12, *(10,) * (len(cells) - len(HEADINGS)), 0)
    names = (0, 1, len(cells) - 1)
    return "  ".join(
        cell.ljust(width) if index in names else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()


def machine() -> dict[str, Any]:
    """Where the figures come from: processor, cores, threads, versions, date."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return {
        "cpu": names[0] if names else cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": sa.ops.cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": str(torch.__version__),
        "sparse_accel": sa.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "date": datetime.date.today().isoformat(),
    }


def parse(argv: Sequence[str] | None, description: str) -> tuple[Settings, Path | None, Path | None]:
    """Settings, the JSON file and the page from the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of parameters and scores (float32)")
    parser.add_argument("--workloads", nargs="+", default=DEFAULT_WORKLOADS, choices=WORKLOADS, metavar="NAME",
                        help=f"any of {', '.join(WORKLOADS)} (all but tiny)")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=3.0, help="measuring time for each case (3)")
    parser.add_argument("--threads", type=int, help="CPU threads (as PyTorch chooses)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the machine there, too")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page there, too")
    args = parser.parse_args(argv)
    if not (args.seconds > 0 and math.isfinite(args.seconds)):
        parser.error(f"--seconds: expected a positive number, got {args.seconds}")
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this PyTorch sees no CUDA device")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    return Settings(args.device, args.dtype, tuple(args.workloads), args.seconds), args.json, args.html


def run_benches(benches: Mapping[str, CaseMaker], settings: Settings) -> list[Row]:
    """Measure every case of every bench, printing each row when it is known."""
    timer = Timer(settings.device)
    rows: list[Row] = []
    facts = machine()
    processor = facts["gpu"] if settings.on_gpu else f"{facts['cpu']}, {facts['threads']} threads"
    say(f"{processor}; torch {facts['torch']}; {settings.dtype}.")
    say("Cold caches, contenders interleaved, medians. Ratios of times: below 1 is faster than the other.")
    for bench, cases in benches.items():
        say(f"\n{bench}\n{format_line(headings(settings))}")
        for case in cases(settings):
            rows.append(measure(bench, case, settings, timer))
            say(format_line(format_row(rows[-1])))
    return rows


def write_json(rows: Iterable[Row], path: Path) -> None:
    """The machine and all rows, as one JSON object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(), "rows": [dataclasses.asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def say(line: str) -> None:
    """A line on standard output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def bench_main(benches: Mapping[str, CaseMaker], argv: Sequence[str] | None, description: str) -> tuple[int, list[Row]]:
    """Parse the command line, run, print, write the JSON file; the exit status and the rows."""
    settings, json_file, page = parse(argv, description)
    rows = run_benches(benches, settings)
    if json_file is not None:
        write_json(rows, json_file)
        say(f"\nwritten: {json_file}")
    if page is not None:
        report = BenchReport(machine(), [dataclasses.asdict(row) for row in rows])
        say(f"\nwritten: {report.html(page)}")
    return 0, rows
