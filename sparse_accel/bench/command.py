"""``sparse-accel bench``: the options, the run, the files."""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .case import CPU_WORKLOADS, CUDA_WORKLOADS, DTYPES, CaseMaker, Row, Settings
from .compare import compare, read
from .facts import machine
from .measure import floor_speed, measure
from .table import format_line, format_row, headings
from .timer import Timer
from .workloads import WORKLOADS

FORMAT = 2  # of the JSON file; files of the first have neither a format nor spreads


class Bench(NamedTuple):
    """Where the cases are made, and whether they have a dtype (else they run in the first that is asked for)."""

    module: str
    every_dtype: bool
    maker: str = "cases"

    def cases(self) -> CaseMaker:
        """What makes them."""
        made: CaseMaker = getattr(importlib.import_module(f"sparse_accel.bench.cases.{self.module}"), self.maker)
        return made


# In order of importance.
BENCHES = {
    "optim": Bench("optim", True),
    "prox": Bench("prox", True),
    "group_score": Bench("group_score", True),
    "topk": Bench("topk", False),
    "group_topk": Bench("group_topk", False),
    "sparse_linear": Bench("sparse_linear", True),
    "gram_obs": Bench("gram_obs", False),
    "glm": Bench("glm", False),
    "ispasp": Bench("ispasp", False),
}
ON_REQUEST = {
    "topk_all": Bench("topk", False, "every_case"),
    "sparse_linear_all": Bench("sparse_linear", True, "every_case"),
}

DESCRIPTION = """Time every op and optimizer beside its plain twin, PyTorch's own (the peer), the same under
torch.compile, AdamW(fused=True), and a copy of as many bytes. Cold caches, contenders interleaved, medians with the
quartiles of the rounds. Columns "/ twin" and so on: our time over theirs, below 1 is faster."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.print_usage(sys.stderr)
        sys.stderr.write(f"sparse-accel: bench: {message}\n")
        raise SystemExit(2)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked: names that exist, files that can be read, packages that are there."""
    known = {**BENCHES, **ON_REQUEST}
    parser = _Parser(prog="sparse-accel bench", description=DESCRIPTION)
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda", help="where to run (cpu)")
    parser.add_argument("--only", nargs="+", metavar="NAME", action="extend", default=None,
                        help=f"any of {', '.join(known)}; or a part of a bench by words in its cases' names, as in "
                        "optim:RMDA (all but those that end in _all)")  # fmt: skip
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], metavar="NAME",
                        help=f"of parameters and scores: {', '.join(DTYPES)} (float32 bfloat16)")  # fmt: skip
    parser.add_argument("--workloads", nargs="+", metavar="NAME",
                        help=f"lists of weights: {', '.join(WORKLOADS)} ({' '.join(CPU_WORKLOADS)}; on CUDA "
                        f"{' '.join(CUDA_WORKLOADS)})")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=0.5, help="measuring time for each case (0.5)")
    parser.add_argument("--threads", type=int, help="CPU threads (as PyTorch chooses)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and rows there")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page there")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="write a roofline and bars there, as PNG (matplotlib)")
    parser.add_argument("--compare", type=Path, nargs="+", metavar="OLD.json",
                        help="then compare with an earlier --json file; with two files nothing is run, and the second "
                        "is compared with the first")  # fmt: skip
    options = parser.parse_args(arguments)

    def known_names(option: str, names: Sequence[str], possible: Sequence[str]) -> None:
        unknown = [name for name in names if name not in possible]
        if unknown:
            parser.error(f"{option}: expected any of {', '.join(possible)}; got {', '.join(unknown)}")

    known_names("--only", [name.partition(":")[0] for name in options.only or ()], list(known))
    known_names("--dtype", options.dtype, list(DTYPES))
    known_names("--workloads", options.workloads or (), list(WORKLOADS))
    if not (options.seconds > 0 and math.isfinite(options.seconds)):
        parser.error(f"--seconds: expected a positive number, got {options.seconds}")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads: expected a number >= 1, got {options.threads}")
    kind = options.device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        parser.error(f"--device: expected cpu or cuda, got {options.device}")
    if kind == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this PyTorch sees no CUDA device")
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install 'sparse-accel[demo]'")
    if options.compare is not None and len(options.compare) > 2:
        parser.error(f"--compare: expected one or two files, got {len(options.compare)}")
    for file in options.compare or ():
        if not file.is_file():
            parser.error(f"--compare: expected a file, got {file}")
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what was asked for, printing each row when it is known; machine and rows."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    on_gpu = torch.device(options.device).type == "cuda"
    workloads = tuple(options.workloads or (CUDA_WORKLOADS if on_gpu else CPU_WORKLOADS))
    timer, facts = Timer(options.device), machine()
    first = Settings(options.device, options.dtype[0], workloads, options.seconds, compiled=not options.no_compile)
    floor = floor_speed(timer, first)
    facts["floor_gb_per_s"] = floor / 1e9
    where = facts["gpu"] if on_gpu else f"{facts['cpu']}, {facts['threads']} threads, load {facts['load']}"
    say(f"{where}; torch {facts['torch']}; a long copy {floor / 1e9:.1f} GB/s.")
    rows: list[Row] = []
    for name, words in _asked(options.only).items():
        bench = {**BENCHES, **ON_REQUEST}[name]
        for dtype in options.dtype if bench.every_dtype else options.dtype[:1]:
            settings = Settings(options.device, dtype, workloads, options.seconds, compiled=first.compiled)
            say(f"\n{name}, {dtype}\n{format_line(headings(settings))}")
            for case in bench.cases()(settings):
                if words and not any(word in f"{case.name}, {case.workload}" for word in words):
                    continue
                rows.append(measure(name, case, settings, timer, floor, say))
                say(format_line(format_row(rows[-1])))
            gc.collect()
    if not rows:
        raise ValueError(f"--only: no case has {' or '.join(options.only)} in its name")
    return {"format": FORMAT, "machine": facts, "rows": [row.to_plain() for row in rows]}


def _asked(only: Sequence[str] | None) -> dict[str, list[str]]:
    """Benches, with words that their cases' names have one of; none: all of them."""
    asked: dict[str, list[str]] = {}
    for name, _, word in (entry.partition(":") for entry in only or BENCHES):
        words = asked.setdefault(name, [])
        if word:
            words.append(word)
    whole = {name for name in only or () if ":" not in name}
    return {name: [] if name in whole else words for name, words in asked.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status.

    Args:
        arguments: without the program's name; those of the process by default.
    """
    options = parse(arguments)
    earlier = [read(file) for file in options.compare or ()]  # what cannot be read is told before the run
    content = earlier[1] if len(earlier) == 2 else run(options)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n")
        say(f"\nwritten: {options.json}")
    if options.html is not None:
        from .report import BenchReport

        say(f"\nwritten: {BenchReport(content['machine'], content['rows']).html(options.html)}")
    if options.plot is not None:
        from .plot import plot

        for file in plot(content, options.plot):
            say(f"written: {file}")
    if earlier:
        say(f"\n{compare(earlier[0], content).text()}")
    return 0


def say(line: str) -> None:
    """A line on standard output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
