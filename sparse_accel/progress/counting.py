"""What a call counts its steps with."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

from sparse_accel.progress.bars import Bar, for_people
from sparse_accel.progress.state import Progress

T = TypeVar("T")
PATIENCE_S = 1.0  # a default bar for calls that take less would only flicker
_ONE_BAR = threading.Lock()  # held by the call that has the bar

Show = bool | Callable[..., Any] | None


def check_progress(progress: Any) -> None:
    """Refuse what ``progress`` cannot be.

    Raises:
        TypeError: it is neither a bool, a function nor None.
    """
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise TypeError(f"progress: expected True, False, None or a function, got {type(progress).__name__}")


class Meter:
    """Counts steps, and tells; made by :func:`meter`."""

    def __init__(
        self, task: str, total: int | None, tell: Callable[[Progress], None] | None, bar: bool = False
    ) -> None:
        self.task, self.total, self._tell, self._bar = task, total, tell, bar
        self.done, self._start = 0, time.perf_counter()
        self._error: float | None = None

    @property
    def shown(self) -> bool:
        """Whether anybody looks: what costs time to say need not be computed otherwise."""
        return self._tell is not None

    def advance(self, label: str = "", error: float | None = None, by: int = 1) -> None:
        """So many further steps are done.

        Args:
            label: what was done.
            error: that it came with.
            by: steps.
        """
        self.at(self.done + by, label, error)

    def move(self, done: int) -> None:
        """So many steps are done, and there is nothing to say of them: a bar moves, functions are not called."""
        if self._bar:
            self.at(done, error=self._error)
        self.done = done

    def at(self, done: int, label: str = "", error: float | None = None) -> None:
        """So many steps are done."""
        self.done, self._error = done, error
        if self._tell is None:
            return
        seconds = time.perf_counter() - self._start
        left = seconds / done * max(0, self.total - done) if done and self.total is not None else None
        self._tell(Progress(self.task, done, self.total, label, error, seconds, left))


@contextmanager
def meter(progress: Show, task: str, total: int | None, *, begin: bool = True) -> Iterator[Meter]:
    """What a call counts its steps with.

    Args:
        progress: of the call, see :mod:`sparse_accel.progress`.
        task: what runs.
        total: steps in all, None where that is not known.
        begin: tell at the start that nothing is done yet.

    Raises:
        TypeError: ``progress`` cannot be that.

    Example:
        >>> with meter(print, "layers", 2) as steps:
        ...     pass
        layers 0/2
    """
    check_progress(progress)
    if callable(progress):
        counted = Meter(task, total, progress)
        if begin:
            counted.at(0)
        yield counted
        return
    if progress is False or not for_people() or not _ONE_BAR.acquire(blocking=False):
        yield Meter(task, total, None)
        return
    try:
        bar = Bar(PATIENCE_S if progress is None else 0.0)
        try:
            counted = Meter(task, total, bar.tell, bar=True)
            counted.at(0)
            yield counted
        finally:
            bar.close()
    finally:
        _ONE_BAR.release()


def over(
    items: Iterable[T],
    task: str,
    progress: Show = None,
    *,
    label: Callable[[T], str] | None = None,
    error: Callable[[], float] | None = None,
) -> Iterator[T]:
    """The items of a loop, counted; the bar goes when the loop ends.

    Args:
        items: to go through.
        task: what runs.
        progress: see :mod:`sparse_accel.progress`.
        label: names an item.
        error: asked after each for the error that it came with.

    Example:
        >>> [number for number in over([3, 4], "numbers", progress=print)]
        numbers 0/2
        numbers 1/2, 0 s left
        numbers 2/2, 0 s left
        [3, 4]
    """
    with meter(progress, task, len(items) if isinstance(items, Sized) else None) as steps:
        for item in items:
            yield item
            steps.advance("" if label is None else label(item), None if error is None else error())


def of_steps(progress: Show) -> Show:
    """A function that takes three numbers (step, steps, error), the older form, as one that takes :class:`Progress`.

    Functions that do not take three arguments, and all else, stay as they are.

    Example:
        >>> of_steps(lambda step, steps, error: print(step, steps, error))(Progress("refine", 1, 9, "", 0.5))
        1 9 0.5
    """
    if not callable(progress) or isinstance(progress, bool):
        return progress
    try:
        inspect.signature(progress).bind(0, 1, 0.0)
    except (TypeError, ValueError):  # it takes other arguments, or does not say which
        return progress
    older: Callable[[int, int | None, float | None], Any] = progress
    return lambda at: older(at.done, at.total, at.error)
