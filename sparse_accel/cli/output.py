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
from sparse_accel.progress import Progress, Show

logger = logging.getLogger("sparse_accel")
_STEPS = ("units kept, ", "% zero, error ")  # in the log's lines on steps


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

    @property
    def progress(self) -> Show:
        """What long calls of the library show: a bar in a terminal, lines elsewhere, nothing if quiet."""
        return False if self.quiet else True if sys.stderr.isatty() else self._step

    def _step(self, at: Progress) -> None:
        if at.done:
            self.say(str(at))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The library's warnings and those of others as notes; besides steps, which :attr:`progress` has, its log as
        progress where there is no bar."""
        handler = _Handler(self)
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
    """Hands the library's log on."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.INFO)
        self.output = output

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            self.output.note(text)
        elif not sys.stderr.isatty() and not any(words in text for words in _STEPS):
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
