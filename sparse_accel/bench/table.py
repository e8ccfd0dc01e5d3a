"""Rows as they are printed while they are measured."""

from __future__ import annotations

from collections.abc import Sequence

from .case import Row, Settings

HEADINGS = (
    "case", "workload", "µs", "± %", "MB", "% of copy", "% of floor",
    "/ twin", "/ peer", "/ compiled", "/ AdamW", "peer",
)  # fmt: skip
GPU_HEADINGS = ("wall µs", "of peer", "graph µs", "of peer")
_WIDTHS = (26, 14, 10, 6, 9, 10, 10, 8, 8, 10, 8)


def headings(settings: Settings) -> tuple[str, ...]:
    """Of a table's columns."""
    return (*HEADINGS[:-1], *GPU_HEADINGS, HEADINGS[-1]) if settings.on_gpu else HEADINGS


def spread_percent(low: float, median: float, high: float) -> float:
    """Half the way between the quartiles, in percent of the median.

    Example:
        >>> spread_percent(90.0, 100.0, 110.0)
        10.0
    """
    return 50 * (high - low) / median if median else 0.0


def format_row(row: Row) -> tuple[str, ...]:
    """A row's cells, in the order of the headings."""

    def number(value: float | None, digits: int = 2) -> str:
        return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.{digits}f}"

    times = (row.wall_microseconds, row.peer_wall_microseconds, row.graph_microseconds, row.peer_graph_microseconds)
    return (
        row.case,
        row.workload,
        number(row.microseconds, 1),
        number(spread_percent(row.low_microseconds, row.microseconds, row.high_microseconds), 1),
        f"{row.bytes_moved / 1e6:,.1f}",
        f"{row.percent_of_copy:.0f}",
        f"{row.percent_of_floor:.0f}",
        number(row.time_over_twin),
        number(row.time_over_peer),
        number(row.time_over_compiled),
        number(row.time_over_adamw),
        *((number(time, 1) for time in times) if row.wall_microseconds is not None else ()),
        row.peer,
    )


def format_line(cells: Sequence[str]) -> str:
    """Cells padded to the table's column widths: names to the left, numbers to the right."""
    widths = (*_WIDTHS, *(10,) * (len(cells) - len(HEADINGS)), 0)
    names = (0, 1, len(cells) - 1)
    return "  ".join(
        cell.ljust(width) if index in names else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()
