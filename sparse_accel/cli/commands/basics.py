"""``sparse-accel info``, ``demo`` and ``bench``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from sparse_accel.cli import options
from sparse_accel.cli.errors import UserError
from sparse_accel.cli.plain import info_text


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
    """Time all ops and optimizers beside PyTorch's own; options of its own (sparse-accel bench --help)."""
    from sparse_accel.bench.command import main

    try:
        status = main(list(context.args))
    except ValueError as error:
        raise UserError(f"bench: {error}") from error
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    raise typer.Exit(status)
