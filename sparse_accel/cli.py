"""The command line: sparse-accel info | demo | bench.

argparse, so that `sparse-accel info`, what one runs when an installation is in doubt, needs nothing besides torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from ._info import build_info

_ROOT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.command(options)
    except _UsageError as error:
        print(f"sparse-accel: {error}", file=sys.stderr)
        return 2
    return status


class _UsageError(Exception):
    """Something that the user can mend; shown without a traceback."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sparse-accel", description="Structured sparsity for PyTorch.")
    parser.add_argument("--version", action="version", version=f"sparse-accel {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="version, torch, instruction set, threads, CUDA, commit")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(command=_info)

    demo = commands.add_parser("demo", help="train, compact and compare on scikit-learn's digits")
    demo.add_argument("--out-dir", type=Path, default=Path("out/demo"), help="where to write (default: %(default)s)")
    demo.add_argument("--epochs", type=_positive, default=None, help="epochs of each training")
    demo.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    demo.add_argument("--no-progress", action="store_true", help="no progress bar")
    demo.set_defaults(command=_demo)

    bench = commands.add_parser("bench", help="run the benchmarks of a source checkout")
    bench.add_argument("names", nargs="*", metavar="NAME", help="which ones, such as optim (default: all)")
    bench.add_argument("--json", type=Path, metavar="DIR", help="also write DIR/bench_NAME.json")
    bench.set_defaults(command=_bench)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return number


def _info(options: argparse.Namespace) -> int:
    info = build_info()
    print(json.dumps(dataclasses.asdict(info), indent=2) if options.json else info)
    return 0


def _demo(options: argparse.Namespace) -> int:
    for module in ("sklearn", "matplotlib", "rich"):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise _UsageError(
                f"the demo needs {error.name}, which is not installed: pip install 'sparse-accel[demo]'"
            ) from error
    from . import demo

    settings = {} if options.epochs is None else {"epochs": options.epochs}
    demo.run(options.out_dir, seed=options.seed, progress=not options.no_progress, **settings)
    return 0


def _bench(options: argparse.Namespace) -> int:
    available = {path.stem.removeprefix("bench_"): path for path in sorted((_ROOT / "bench").glob("bench_*.py"))}
    if not available:
        raise _UsageError("the benchmarks are in the source checkout (bench/), not in the wheel: run it from a checkout")
    for name in options.names:
        if name not in available:
            raise _UsageError(f"no benchmark {name!r}; there are {', '.join(available)}")
    failed = []
    for name in options.names or available:
        command = [sys.executable, "-m", f"bench.bench_{name}"]
        if options.json:
            options.json.mkdir(parents=True, exist_ok=True)
            command += ["--json", str((options.json / f"bench_{name}.json").resolve())]
        # Each in a process of its own: no allocator state or thread pool carried from one to the next.
        if subprocess.run(command, cwd=_ROOT, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"sparse-accel: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
