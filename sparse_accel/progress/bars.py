"""Bars in terminals: of rich where it is installed, else a line of text."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from typing import Any

import torch.distributed as dist

from sparse_accel.progress.state import Progress, clock

REDRAW_S = 0.1


def for_people() -> bool:
    """Whether somebody sees a bar of this process."""
    first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    isatty = getattr(sys.stderr, "isatty", None)
    return first and isatty is not None and bool(isatty())


class Bar:
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
        if self.shown and now - self.at < REDRAW_S and at.done != at.total:
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
        self.at = 0.0

    def draw(self, at: Progress) -> None:
        now = time.perf_counter()
        if self.task is None:
            self.bars.start()
            self.task = self.bars.add_task(at.task, total=at.total, told="")
        elif now - self.at < REDRAW_S and at.done != at.total:
            return
        self.at = now
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
