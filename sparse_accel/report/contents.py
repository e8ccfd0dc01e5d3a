"""What a report says, said once: facts, tables, charts and notes, from which every format is made."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


def number(value: Any) -> str:
    """Whole numbers with separators, others with four digits, None as nothing.

    Example:
        >>> number(12000), number(1.23456), number(None), number("as it is")
        ('12,000', '1.235', '', 'as it is')
    """
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(part: float, whole: float) -> str:
    """``part`` of ``whole`` in percent; 0 of 0 is 0.

    Example:
        >>> percent(1, 8)
        '12.5 %'
    """
    return f"{100 * part / whole if whole else 0.0:.1f} %"


def share(value: float | None, digits: int = 1) -> str:
    """A share in [0, 1] in percent.

    Example:
        >>> share(0.125), share(None)
        ('12.5 %', '')
    """
    return "" if value is None else f"{100 * value:.{digits}f} %"


def change(pair: Sequence[Any] | None) -> str:
    """Before and after.

    Example:
        >>> change((1200, 300))
        '1,200 → 300'
    """
    return "" if pair is None else " → ".join(map(number, pair))


def sizes(shape: Sequence[int] | None) -> str:
    """A shape.

    Example:
        >>> sizes((16, 3, 3))
        '16×3×3'
    """
    return "" if shape is None else "×".join(map(str, shape))


def written(form: str, none: str = "") -> Callable[[Any], str]:
    """Numbers by a format specification.

    Example:
        >>> written(".2f")(1), written(".2f")(None)
        ('1.00', '')
    """
    return lambda value: none if value is None else format(value, form)


@dataclass(frozen=True)
class Column:
    """One column of a :class:`Table`.

    Attributes:
        key: its name in data frames.
        head: its heading, with the unit where there is one.
        show: a value as text.
        unit: of the values, for data frames.
        left: text, which reads from the left; numbers are aligned at the right.
        parts: of values that are pairs: what the columns of a data frame add to ``key``.
    """

    key: str
    head: str
    show: Callable[[Any], str] = number
    unit: str = ""
    left: bool = False
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows of values, one per column; shown as the columns say.

    Attributes:
        columns: see :class:`Column`.
        rows: of plain values.
        total: a last row below a rule, None where nothing adds up; its entries may be None.
        title: above it.
        detail: shown where there is room (pages, Markdown, data), not in terminals.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    total: Sequence[Any] | None = None
    title: str = ""
    detail: bool = False

    @property
    def heads(self) -> list[str]:
        """The headings."""
        return [column.head for column in self.columns]

    def shown(self, row: Sequence[Any]) -> list[str]:
        """A row as text."""
        pairs = zip(self.columns, row, strict=True)
        return ["" if value is None else column.show(value) for column, value in pairs]

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of single values, pairs taken apart; shapes as text.

        Example:
            >>> table = Table([Column("n", "n", parts=("before", "after"))], [[(3, 2)]])
            >>> table.records()
            [{'n_before': 3, 'n_after': 2}]
        """
        out = []
        for row in self.rows:
            record: dict[str, Any] = {}
            for column, value in zip(self.columns, row, strict=True):
                if column.parts:
                    values = [None] * len(column.parts) if value is None else value
                    names = [f"{column.key}_{part}" for part in column.parts]
                    record |= dict(zip(names, values, strict=True))
                else:
                    record[column.key] = column.show(value) if isinstance(value, (tuple, list)) else value
            out.append(record)
        return out


@dataclass(frozen=True)
class Fact:
    """A headline figure, ``label (basis): value (detail)``; without a label a sentence.

    Attributes:
        label: what it is.
        value: what it came to.
        detail: more of it.
        basis: how it was taken.
        joined: in plain text on the line of the fact before.
        plain: how plain text says it, if not like that; ``""``: not at all, since a table's total does.
    """

    label: str
    value: str
    detail: str = ""
    basis: str = ""
    joined: bool = False
    plain: str | None = None

    def __str__(self) -> str:
        if self.plain is not None:
            return self.plain
        basis = f" ({self.basis})" if self.basis else ""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.label}{basis}: {self.value}{detail}" if self.label else self.value


@dataclass(frozen=True)
class Note:
    """What was left out, dropped, assumed or not as usual; every format has it.

    Attributes:
        text: a sentence.
        label: what it is about: ``"note"``, ``"left dense"``, the name of a layer.
        warning: that the figures cannot be taken as they are.
    """

    text: str
    label: str = "note"
    warning: bool = False

    def __str__(self) -> str:
        return f"{self.label}: {self.text}" if self.label else self.text


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, a row for each label.

    Attributes:
        title: above it.
        labels: of the rows.
        series: by name a value for each row, None where there is none.
        texts: what stands beside each row; by default its values.
        whole: what a full bar is; None: the largest value.
        unit: of the values.
    """

    title: str
    labels: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    texts: Sequence[str] = ()
    whole: float | None = None
    unit: str = ""

    def most(self) -> float:
        """The value of a full bar, more than 0; values that are not finite do not count."""
        values = [value for row in self.series.values() for value in row if value is not None and math.isfinite(value)]
        return self.whole or max(values, default=0.0) or 1.0

    def told(self, row: int) -> str:
        """What stands beside a row."""
        if self.texts:
            return self.texts[row]
        values = (values[row] for values in self.series.values())
        return " → ".join(f"{value:.3g}" for value in values if value is not None) + (f" {self.unit}".rstrip())


@dataclass(frozen=True)
class Lines:
    """Curves over a common axis.

    Attributes:
        title: above it.
        x: what the horizontal axis counts.
        series: by name points ``(x, y)``, in order.
        unit: of the values.
        marks: places on the horizontal axis with a line of their own.
        low, high: ends of the vertical axis, where they do not follow from the points.
    """

    title: str
    x: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    unit: str = ""
    marks: Sequence[float] = ()
    low: float | None = None
    high: float | None = None

    def points(self) -> dict[str, list[tuple[float, float]]]:
        """The points that can be drawn: the finite ones."""
        return {
            name: [point for point in points if all(map(math.isfinite, point))] for name, points in self.series.items()
        }


def tints(names: Iterable[str], count: int = 4) -> list[int]:
    """Which colour each series has: 0, a grey, for what is called ``dense…``, else 1 to ``count`` in turn.

    Example:
        >>> tints(["dense, SGD", "RMDA", "ProxSGD"])
        [0, 1, 2]
    """
    turns = itertools.cycle(range(1, count + 1))
    return [0 if name.startswith("dense") else next(turns) for name in names]


@dataclass(frozen=True)
class Contents:
    """All that a report says.

    Attributes:
        title: of the whole.
        facts: headline figures and sentences.
        tables: the first one is what data frames are made of.
        charts: see :class:`Bars` and :class:`Lines`.
        parts: contents of reports inside this one.
        notes: what was left out, dropped, assumed.
    """

    title: str
    facts: Sequence[Fact] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[Bars | Lines] = ()
    parts: Sequence[Contents] = ()
    notes: Sequence[Note] = field(default=())

    def all_charts(self) -> list[Bars | Lines]:
        """The charts, those of the parts too, that have anything to draw."""
        own = [chart for chart in self.charts if any(map(len, chart.series.values()))]
        return [*own, *(chart for part in self.parts for chart in part.all_charts())]

    def all_notes(self) -> list[Note]:
        """The notes, those of the parts too."""
        return [*self.notes, *(note for part in self.parts for note in part.all_notes())]

    def all_tables(self) -> list[Table]:
        """The tables, those of the parts too."""
        return [*self.tables, *(table for part in self.parts for table in part.all_tables())]
