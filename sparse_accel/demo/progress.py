"""A progress bar for several trainings in a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sparse_accel.progress import Show, meter

from .training import Epoch

Advance = Callable[[str, Epoch], None]


@contextmanager
def progress_bar(total: int, shown: Show = True) -> Iterator[Advance]:
    """A bar over ``total`` epochs; the value to call after each, with the training's name and the epoch's figures.

    Args:
        total: epochs of all trainings together.
        shown: see :mod:`sparse_accel.progress`; a label has the training's name and the figures, an error is the share
            of the test data that is wrong.
    """
    with meter(shown, "training", total) as done:

        def advance(label: str, figures: Epoch) -> None:
            wrong = 1 - figures.accuracy
            told = f"{label}: accuracy {100 * figures.accuracy:.1f} %, zero {100 * figures.group_sparsity:.0f} %"
            done.advance(told, wrong)

        yield advance
