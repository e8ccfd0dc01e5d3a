"""The report behind every report."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import IO, Any, cast

from sparse_accel.report.contents import Contents
from sparse_accel.report.text import markdown, plain_text


class Report(ABC):
    """What a call did, in the format that is at hand.

    A report says once what there is to say (:meth:`contents`: headline figures, tables, charts, notes); every format is
    made from that, and every format has the notes: what was left out, dropped or assumed.

    ``str(report)`` is a plain table. Formats that need another package say so when it is missing, and which extra
    brings it.

    Example:
        >>> import torch, sparse_accel as sa
        >>> layer = torch.nn.Linear(4, 2)
        >>> _ = layer.weight.data[:, 1:].zero_()
        >>> report = sa.sparsity(layer)
        >>> isinstance(report, sa.Report), report.to_dict()["group_sparsity"]
        (True, 0.75)
        >>> print(report)
        groups by input
        weight  shape  groups  zero groups  of groups  of weights  zero weights
        -----------------------------------------------------------------------
        weight    2×4       4            3     75.0 %      75.0 %        75.0 %
        -----------------------------------------------------------------------
        total               4            3     75.0 %      75.0 %        75.0 %
        >>> report.html("sparsity.html").read_text().splitlines()[0]
        '<!DOCTYPE html>'
    """

    @abstractmethod
    def contents(self) -> Contents:
        """All that the report says, from which every format is made."""

    def to_plain(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        data: dict[str, Any] = dataclasses.asdict(cast(Any, self))
        return data

    def __str__(self) -> str:
        return plain_text(self.contents())

    def to_dict(self) -> dict[str, Any]:
        """Everything as data that JSON takes as it is: that of ``to_plain``, ``"title"`` and, as ``"notes"``, all that
        the report says was left out or assumed. Numbers that are not finite are text (``"nan"``, ``"inf"``)."""
        contents = self.contents()
        plain = {"title": contents.title, **self.to_plain(), "notes": [str(note) for note in contents.all_notes()]}
        data: dict[str, Any] = json_able(plain)
        return data

    def to_json(self, path: str | Path | None = None, *, indent: int | None = 1) -> str:
        """:meth:`to_dict` as JSON text, also written to ``path`` where one is given."""
        text = json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)
        if path is not None:
            written(path, text + "\n")
        return text

    def to_markdown(self, path: str | Path | None = None) -> str:
        """Facts, tables and notes as Markdown, also written to ``path`` where one is given."""
        text = markdown(self.contents())
        if path is not None:
            written(path, text + "\n")
        return text

    def to_frame(self, table: int = 0) -> Any:
        """A table as a ``pandas.DataFrame``: numbers as numbers, a column for each end of a pair.

        ``frame.attrs`` has the title, the units by column and the notes.

        Args:
            table: which of the report's tables, counted from 0.

        Raises:
            IndexError: the report has no such table.
            ImportError: pandas is not installed.
        """
        from sparse_accel.report.frame import frame

        return frame(self.contents(), table)

    def show(self, file: IO[str] | None = None) -> None:
        """Print: a table with colours in a terminal where rich is installed, plain text anywhere else.

        Args:
            file: to print to; by default the standard output.
        """
        from sparse_accel.report.terminal import show

        show(self.contents(), sys.stdout if file is None else file)

    def plot(self, path: str | Path, *, title: str | None = None) -> Path:
        """Draw the report's charts into one picture, with matplotlib.

        Args:
            path: the file to write, ``.png``, ``.svg`` or ``.pdf``.
            title: of the picture; by default the report's.

        Returns:
            The path.

        Raises:
            ValueError: another suffix, or the report has nothing to draw.
            ImportError: matplotlib is not installed.
        """
        from sparse_accel.report.figure import draw

        contents = self.contents()
        charts = contents.all_charts()
        if not charts:
            raise ValueError(f"{type(self).__name__}: nothing to plot: it has no rows")
        return draw(path, charts, title=contents.title if title is None else title, notes=contents.all_notes())

    def to_html(self) -> str:
        """The page that :meth:`html` writes, as text."""
        from sparse_accel.report.page import page

        return page(self.contents())

    def html(self, path: str | Path) -> Path:
        """Write one page that stands alone: figures, tables, charts and notes, no script, nothing from the network.

        It follows the reader's dark or light mode, and fits phones. Needs no other package.

        Returns:
            The path.
        """
        return written(path, self.to_html())

    def _repr_html_(self) -> str:
        """In notebooks."""
        from sparse_accel.report.page import fragment

        return fragment(self.contents())

    def __rich__(self) -> Any:
        """With rich's ``print``."""
        from sparse_accel.report.terminal import renderable

        return renderable(self.contents())


def written(path: str | Path, text: str) -> Path:
    """Write a text file, with its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def json_able(value: Any) -> Any:
    """Plain data that JSON takes: lists of sequences, text of keys, of numbers that are not finite and of all else.

    Example:
        >>> json_able({1: (2, float("nan"))})
        {'1': [2, 'nan']}
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): json_able(entry) for key, entry in value.items()}
    if isinstance(value, (Sequence, Set)):
        return [json_able(entry) for entry in value]
    return str(value)
