"""The command line: sparse-accel info | demo | bench.

argparse, so that `sparse-accel info`, what one runs when an installation is in doubt, needs nothing besides torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from ._info import build_info

_ROOT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command is not _bench:  # the benchmarks have options of their own
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
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

    bench = commands.add_parser("bench", add_help=False, help="run the benchmarks of a source checkout")
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
    missing = [name for name in ("sklearn", "matplotlib", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        raise _UsageError(f"the demo needs {', '.join(missing)}: pip install 'sparse-accel[demo]'")
    from . import demo

    settings = {} if options.epochs is None else {"epochs": options.epochs}
    return demo.run(options.out_dir, seed=options.seed, progress=not options.no_progress, **settings).status


def _bench(options: argparse.Namespace) -> int:
    if not (_ROOT / "bench" / "__init__.py").is_file():
        raise _UsageError("the benchmarks are in bench/ of a source checkout, not in the wheel: install with pip -e .")
    sys.path.insert(0, str(_ROOT))
    status: int = importlib.import_module("bench").main(options.rest)
    return status


if __name__ == "__main__":
    sys.exit(main())
