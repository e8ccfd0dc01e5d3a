"""How far a long call is: a bar in a terminal, nothing in a pipe, or a function of one's own.

Every long call takes ``progress``:

- ``None`` (the default): a bar, once the call has taken longer than a second, if the standard error is a terminal;
- ``True``: a bar from the start, if the standard error is a terminal;
- ``False``: nothing;
- a function: called with a :class:`Progress` at the start and after every step, wherever the call runs.

Bars are rich's where rich is installed, else a line of text. They are gone when the call ends, by an error or an
interrupt too; a call inside a call that has a bar has none. Under ``torch.distributed`` rank 0 alone has a bar;
functions are called on every rank.
"""

from __future__ import annotations

import inspect
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")
PATIENCE_S = 1.0  # a default bar for calls that take less would only flicker
REDRAW_S = 0.1
_ONE_BAR = threading.Lock()  # held by the call that has the bar


@dataclass(frozen=True)
class Progress:
    """Where a call is.

    Attributes:
        task: what runs, such as ``"ISpaSP"`` or ``"refine"``.
        done: steps that are finished.
        total: steps in all; None where that is not known.
        label: what was done last, such as the name of a layer.
        error: that it came with; None where there is none.
        seconds: since the start.
        seconds_left: if the steps to come take as long as those before; None before the first.

    Example:
        >>> import torch, sparse_accel as sa
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> def tell(at):
        ...     print(at.task, at.done, at.total, at.label, at.error is None or at.error < 1)
        >>> _ = sa.prune.CurvatureIHT(net, 0.5, progress=tell).run(torch.randn(64, 4))
        CurvatureIHT 0 2  True
        CurvatureIHT 1 2 0 True
        CurvatureIHT 2 2 2 True
    """

    task: str
    done: int
    total: int | None
    label: str = ""
    error: float | None = None
    seconds: float = 0.0
    seconds_left: float | None = None

    def __str__(self) -> str:
        of = "" if self.total is None else f"/{self.total}"
        error = "" if self.error is None else f", error {self.error:.3g}"
        left = "" if self.seconds_left is None else f", {clock(self.seconds_left)} left"
        return f"{self.task} {self.done}{of}{f' {self.label}' if self.label else ''}{error}{left}"


Show = bool | Callable[..., Any] | None


def check_progress(progress: Any) -> None:
    """Refuse what ``progress`` cannot be.

    Raises:
        TypeError: it is neither a bool, a function nor None.
    """
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise TypeError(f"progress: expected True, False, None or a function, got {type(progress).__name__}")


def clock(seconds: float) -> str:
    """Seconds for people.

    Example:
        >>> clock(7.2), clock(75), clock(7260)
        ('7 s', '1:15', '2:01:00')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class Meter:
    """Counts steps, and tells; made by :func:`meter`."""

    def __init__(self, task: str, total: int | None, tell: Callable[[Progress], None] | None) -> None:
        self.task, self.total, self._tell = task, total, tell
        self.done, self._start = 0, time.perf_counter()

    def advance(self, label: str = "", error: float | None = None, by: int = 1) -> None:
        """So many further steps are done.

        Args:
            label: what was done.
            error: that it came with.
            by: steps.
        """
        self.at(self.done + by, label, error)

    def at(self, done: int, label: str = "", error: float | None = None) -> None:
        """So many steps are done."""
        self.done = done
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
    if progress is False or not _for_people() or not _ONE_BAR.acquire(blocking=False):
        yield Meter(task, total, None)
        return
    try:
        bar = _Bar(PATIENCE_S if progress is None else 0.0)
        try:
            counted = Meter(task, total, bar.tell)
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


def _for_people() -> bool:
    """Whether somebody sees a bar of this process."""
    first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    isatty = getattr(sys.stderr, "isatty", None)
    return first and isatty is not None and bool(isatty())


class _Bar:
    """Draws when a step is done, and once when its time has come: no thread goes on beside what is timed."""

    def __init__(self, patience: float) -> None:
        self.pen: _Line | _Rich | None = None
        self.last: Progress | None = None
        self.lock = threading.Lock()
        self.timer = threading.Timer(patience, self._appear) if patience else None
        if self.timer is None:
            self.pen = _pen()
        else:
            self.timer.daemon = True
            self.timer.start()

    def tell(self, at: Progress) -> None:
        with self.lock:
            self.last = at
            if self.pen is not None:
                self.pen.draw(at)

    def _appear(self) -> None:
        with self.lock:
            if self.timer is not None:  # not closed meanwhile
                self.pen = _pen()
                if self.last is not None:
                    self.pen.draw(self.last)

    def close(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        with self.lock:
            self.timer = None
            if self.pen is not None:
                self.pen.erase()
                self.pen = None


class _Line:
    """A bar as a line of text."""

    def __init__(self) -> None:
        self.file, self.at, self.shown = sys.stderr, 0.0, 0

    def draw(self, at: Progress) -> None:
        now = time.perf_counter()
        if self.shown and now - self.at < REDRAW_S:
            return
        self.at = now
        text = str(at)[: shutil.get_terminal_size().columns - 1]
        self._write("\r" + text.ljust(self.shown))
        self.shown = len(text)

    def erase(self) -> None:
        if self.shown:
            self._write("\r" + " " * self.shown + "\r")

    def _write(self, text: str) -> None:
        self.file.write(text)
        self.file.flush()


class _Rich:
    """A bar of rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars

        words, told = (TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[told]"))
        columns = (words, BarColumn(bar_width=24), MofNCompleteColumn(), told)
        self.bars = Bars(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
        self.task: Any = None

    def draw(self, at: Progress) -> None:
        if self.task is None:
            self.bars.start()
            self.task = self.bars.add_task(at.task, total=at.total, told="")
        error = "" if at.error is None else f"error {at.error:.3g}"
        left = "" if at.seconds_left is None else f"{clock(at.seconds_left)} left"
        told = "  ".join(text for text in (left, error, at.label) if text)
        self.bars.update(self.task, completed=at.done, total=at.total, told=told, refresh=True)

    def erase(self) -> None:
        self.bars.stop()


def _pen() -> _Line | _Rich:
    try:
        return _Rich()
    except ImportError:
        return _Line()
