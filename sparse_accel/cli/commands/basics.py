"""``sparse-accel info``, ``demo`` and ``bench``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import typer

from sparse_accel.cli import options
from sparse_accel.cli.errors import UserError
from sparse_accel.cli.plain import info_text

ROOT = Path(__file__).resolve().parents[3]


def info(as_json: options.Json = False) -> None:
    """Version, torch, instruction set, threads, CUDA, commit: what is installed, and what runs."""
    typer.echo(info_text(as_json=as_json))


def demo(
    out_dir: Annotated[Path, typer.Option(help="Where to write.")] = Path("out/demo"),
    epochs: Annotated[int | None, typer.Option(help="Epochs of each training.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bar.")] = False,
    debug: options.Debug = False,
) -> None:
    """Train on scikit-learn's digits, remove what became zero, compare: a minute on one core.

    Exit status 1: a target was missed.
    """
    missing = [name for name in ("sklearn", "matplotlib", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the demo needs {', '.join(missing)}: pip install 'sparse-accel[demo]'")
    from sparse_accel import demo as package

    settings = {} if epochs is None else {"epochs": epochs}
    raise typer.Exit(package.run(out_dir, seed=seed, progress=not no_progress, **settings).status)


def bench(context: typer.Context) -> None:
    """Run the benchmarks of a source checkout; they have options of their own (sparse-accel bench --help)."""
    if not (ROOT / "bench" / "__init__.py").is_file():
        raise UserError("the benchmarks are in bench/ of a source checkout, not in the wheel: install with pip -e .")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    raise typer.Exit(importlib.import_module("bench").main(list(context.args)))
