"""``make cuda-check``: the module builds with CUDA against this interpreter's torch, and imports. No GPU needed.

    PYTHONPATH=bench PYTHON -m gpu.cuda_check [--jobs N]

Finds what compiling alone does not: symbols that torch's CUDA libraries lack, and a build that CMake cannot make.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import build
from .part import Outcome, Run
from .process import run as run_command

LIMIT = 3600.0  # seconds for each of the two: two cores take many minutes


def check(run: Run) -> Outcome:
    """Build by CMake, then import with every symbol bound at once."""
    outcome = build.build_module(run, LIMIT)
    if not outcome.good:
        return outcome
    done = run_command(run.script("imported", outcome.data["module"]), LIMIT, run.logs / "imported.log")
    return build.of_commands([done]) if done.code else Outcome(outcome.result, done.output.strip())


def main(argv: list[str] | None = None) -> int:
    """0 if it builds and imports."""
    parser = argparse.ArgumentParser(prog="gpu.cuda_check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, help="compilers at a time (one for each core)")
    options = parser.parse_args(argv)
    run = Run(Path(__file__).resolve().parents[2], "full", dry=False, jobs=options.jobs)
    outcome = check(run)
    for entry in outcome.failures:
        print(f"{entry['what']}: {entry['why']}\n{entry['text']}", file=sys.stderr)
    print(f"cuda-check {outcome.result}: {outcome.note}")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
