"""A report as text, Markdown, HTML and plain data: the one place that knows how."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sparse_accel.report import Contents, Note, Report
from sparse_accel.report.text import plain_text

FORMATS = ("table", "json", "markdown", "html")


@dataclass(frozen=True)
class Told(Report):
    """A report with what the command adds to it.

    Attributes:
        report: that the library made.
        title: of pages and documents; its own by default.
        notes: that are not in it.
    """

    report: Report
    title: str = ""
    notes: list[str] = field(default_factory=list)

    def contents(self) -> Contents:
        """See :class:`~sparse_accel.Report`."""
        own = self.report.contents()
        known = plain_text(own)
        more = [Note(note) for note in self.notes if note not in known]
        return replace(own, title=self.title or own.title, notes=[*own.notes, *more])

    def to_plain(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        return self.report.to_plain()


def as_text(report: Report, notes: Sequence[str] = ()) -> str:
    """For a terminal (a table of rich, where it is installed and stdout is one) or a pipe."""
    told = Told(report, "", list(notes)) if notes else report
    if not sys.stdout.isatty():
        return str(told)
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    told.show(screen)
    return screen.getvalue()


def as_plain(report: Report) -> dict[str, Any]:
    """JSON-able data."""
    return report.to_plain()


def as_markdown(report: Report, title: str, notes: Sequence[str] = ()) -> str:
    """Facts, tables and notes as Markdown."""
    return Told(report, title, list(notes)).to_markdown()


def as_html(report: Report, title: str, notes: Sequence[str] = ()) -> str:
    """One page that needs nothing else."""
    return Told(report, title, list(notes)).to_html()
