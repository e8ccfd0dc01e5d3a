"""A progress bar for several trainings in a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .training import Epoch

Advance = Callable[[str, Epoch], None]


@contextmanager
def progress_bar(total: int, shown: bool = True) -> Iterator[Advance]:
    """A bar over ``total`` epochs; the value to call after each, with the training's name and the epoch's figures.

    Args:
        total: epochs of all trainings together.
        shown: False draws nothing (and needs no rich).
    """
    if not shown:
        yield lambda label, figures: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("[bold]{task.description:<18}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=total, figures="")

        def advance(label: str, figures: Epoch) -> None:
            text = f"accuracy {100 * figures.accuracy:.1f} %, zero {100 * figures.group_sparsity:.0f} %"
            bar.update(task, advance=1, description=label, figures=text)

        yield advance
