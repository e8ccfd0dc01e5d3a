"""What goes where: results on stdout, as text or as one JSON document; all else on stderr, or nowhere."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sparse_accel._build_info import version

logger = logging.getLogger("sparse_accel")


class Output:
    """Of one command.

    Args:
        as_json: the result is one JSON document on stdout, and nothing else is there.
        quiet: no progress, no notes and no result as text; errors are told all the same.

    Attributes:
        notes: what was said with :meth:`note` or by warnings, for the report.
    """

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.notes: list[str] = []
        self.start = time.perf_counter()

    def say(self, text: str) -> None:
        """Progress."""
        if not self.quiet:
            sys.stderr.write(f"[{time.perf_counter() - self.start:6.1f} s] {text}\n")
            sys.stderr.flush()

    def note(self, text: str) -> None:
        """What was not as usual: told, and kept for the report; once."""
        if text not in self.notes:
            self.notes.append(text)
            if not self.quiet:
                sys.stderr.write(f"note: {text}\n")

    def result(self, command: str, text: str, plain: Mapping[str, Any]) -> None:
        """The end of a command.

        Args:
            command: its name.
            text: for people.
            plain: JSON-able data for programs.
        """
        if self.as_json:
            document = {"command": command, "sparse_accel": version, **plain}
            sys.stdout.write(json.dumps(finite(document), indent=2, allow_nan=False) + "\n")
        elif not self.quiet:
            sys.stdout.write(text.rstrip("\n") + "\n")
        sys.stdout.flush()

    @contextmanager
    def listening(self, step: str = "", total: int = 0) -> Iterator[None]:
        """The library's log as progress, its warnings and those of others as notes.

        Args:
            step: words in every line that ends one step.
            total: number of such steps, if known.
        """
        handler = _Handler(self, step, total)
        level, propagate = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            self.note(str(message))

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                warnings.showwarning = show
                yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


class _Handler(logging.Handler):
    """Hands the library's log on, with the steps counted."""

    def __init__(self, output: Output, step: str, total: int) -> None:
        super().__init__(logging.INFO)
        self.output, self.step, self.total = output, step, total
        self.start, self.done = 0.0, 0  # of the first step's end: what comes before it is no measure of the others

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            self.output.note(text)
        elif self.step and self.step in text:
            self.start = self.start or time.perf_counter()
            left = (time.perf_counter() - self.start) / max(self.done, 1) * (self.total - self.done - 1)
            self.done += 1
            rest = f"; {left:.0f} s left" if left > 0 else ""
            self.output.say(f"{self.done}/{max(self.total, self.done)} {text}{rest}")
        else:
            self.output.say(text)


def finite(tree: Any) -> Any:
    """Plain data without numbers that JSON does not know: NaN and infinities become None.

    Example:
        >>> finite({"a": [1.0, float("nan")], "b": (2, float("inf"))})
        {'a': [1.0, None], 'b': [2, None]}
    """
    if isinstance(tree, Mapping):
        return {str(key): finite(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [finite(item) for item in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree
