"""``bench/run_on_gpu.sh [full|bench] [--dry-run] [--budget SECONDS]``: see README.md beside this file."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .part import FAILED, SKIPPED, Outcome, Part, Run
from .plan import BUDGET, DRY_LIMIT, parts
from .report import Report

ROOT = Path(__file__).resolve().parents[2]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; wrong arguments end the program with status 2."""
    parser = argparse.ArgumentParser(
        prog="bench/run_on_gpu.sh", description="Build, test, sanitize and time everything on a machine with a GPU."
    )
    parser.add_argument("mode", nargs="?", default="full", choices=tuple(BUDGET),
                        help="full: everything, under 8 minutes on 16 cores (default); bench: under 4")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true",
                        help="print the plan and check what can be checked without a GPU")  # fmt: skip
    parser.add_argument("--budget", type=float, metavar="SECONDS",
                        help="for all parts: 470 for full, 230 for bench; no limit for all in a dry run")  # fmt: skip
    options = parser.parse_args(argv)
    if options.budget is not None and not 0 < options.budget < float("inf"):
        parser.error(f"--budget: expected a positive number of seconds, got {options.budget}")
    return options


def attempt(part: Part, run: Run, seconds: float) -> tuple[Outcome, float]:
    """A part's outcome and seconds. An exception of its own is a failure of it, and not the end of the run."""
    begin = time.monotonic()
    lacking = [need for need in part.needs if need not in run.passed]
    if lacking:
        outcome = Outcome(SKIPPED, f"needs {', '.join(lacking)}")
    elif seconds < 1:
        outcome = Outcome(SKIPPED, "no time left")
    else:
        try:
            outcome = (part.rehearse if run.dry else part.run)(run, seconds)
        except Exception as error:
            why, text = f"{type(error).__name__}: {error}", traceback.format_exc()[-3000:]
            outcome = Outcome(FAILED, why, [{"what": part.name, "why": why, "text": text}])
    return outcome, time.monotonic() - begin


def share(row: Sequence[Part], later: Sequence[Sequence[Part]], left: float) -> list[float]:
    """Seconds for each part of a row: its limit, less where later parts would not get their least."""
    kept = sum(max(part.least for part in others) for others in later)
    return [min(part.limit, max(min(part.least, left), left - kept)) for part in row]


def perform(plan: Sequence[Sequence[Part]], run: Run, budget: float | None) -> Report:
    """All parts within `budget` seconds (None: each within its own limit), said when they begin and when they end."""
    report, deadline = Report(run), time.monotonic() + (budget or 0)
    for index, row in enumerate(plan):
        limits = share(row, plan[index + 1 :], deadline - time.monotonic()) if budget else [DRY_LIMIT] * len(row)
        for part, seconds in zip(row, limits, strict=True):
            print(f"== {part.name}: {part.does}  [{max(0.0, seconds):.0f} s at most]", flush=True)
        with ThreadPoolExecutor(len(row)) as pool:
            ended = list(pool.map(lambda part, seconds: attempt(part, run, seconds), row, limits))
        for part, (outcome, seconds) in zip(row, ended, strict=True):
            report.add(part.name, outcome, seconds)
            if outcome.good or outcome.usable:
                run.passed.add(part.name)
            print(f"   {part.name}: {outcome.result}, {seconds:.1f} s. {outcome.note}", flush=True)
        report.write(complete=index + 1 == len(plan))
    return report


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """The exit status: 0 if every part passed."""
    options = parse(argv)
    run = Run(root, options.mode, options.dry_run)
    run.logs.mkdir(parents=True, exist_ok=True)
    report = perform(parts(run.mode), run, options.budget or (None if run.dry else BUDGET[run.mode]))
    if text := report.failures_text():
        print(f"\nfailures (logs: {run.logs})\n{text}")
    if report.path is not None:
        print(f"\nwritten: {report.path}")
    print(f"\n{report.table()}", flush=True)
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
