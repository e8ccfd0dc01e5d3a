"""Results of the benches as a report: tables and charts for ``--html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_accel.report import Bars, Column, Contents, Fact, Note, Report, Table, written

from .compare import read

METHOD = "Cold caches, contenders interleaved, medians. Ratios of times: below 1 is faster than the other."


class BenchReport(Report):
    """Measured cases, a table and a chart for each bench.

    Args:
        machine: where the figures come from, see :func:`sparse_accel.bench.facts.machine`.
        rows: as :class:`sparse_accel.bench.case.Row` has them, as dictionaries.
    """

    def __init__(self, machine: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        self.machine, self.rows = dict(machine), [dict(row) for row in rows]

    @classmethod
    def read(cls, path: Path) -> BenchReport:
        """A file of ``--json``.

        Raises:
            ValueError: it is none.
        """
        content = read(path)
        return cls(content["machine"], content["rows"])

    def to_plain(self) -> dict[str, Any]:
        """What ``--json`` writes."""
        return {"machine": self.machine, "rows": self.rows}

    def contents(self) -> Contents:
        """See :class:`sparse_accel.Report`."""
        benches: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            benches.setdefault(row["bench"], []).append(row)
        known = {key: value for key, value in self.machine.items() if value is not None and not isinstance(value, dict)}
        facts = [Fact("", f"{', '.join(f'{key} {value}' for key, value in known.items())}.")]
        tables = [_table(name, rows) for name, rows in benches.items()]
        charts = [_chart(name, rows) for name, rows in benches.items()]
        return Contents("Benches of sparse_accel", facts, tables, charts, notes=[Note(METHOD)])


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """The cases of one bench; columns that no row has are left out."""
    columns = [
        Column("case", "case"),
        Column("workload", "workload", left=True),
        Column("device", "device", left=True),
        Column("dtype", "dtype", left=True),
        Column("microseconds", "µs", written(",.1f"), unit="µs"),
        Column("low_microseconds", "quartile", written(",.1f"), unit="µs"),
        Column("high_microseconds", "to", written(",.1f"), unit="µs"),
        Column("bytes_moved", "MB", lambda count: f"{count / 1e6:,.1f}", unit="B"),
        Column("gb_per_s", "GB/s", written(".1f"), unit="GB/s"),
        Column("percent_of_copy", "% of copy", written(".0f"), unit="%"),
        Column("percent_of_floor", "% of floor", written(".0f"), unit="%"),
        Column("time_over_twin", "time / twin", written(".3f")),
        Column("time_over_peer", "time / peer", written(".3f")),
        Column("time_over_compiled", "time / compiled", written(".3f")),
        Column("time_over_adamw", "time / AdamW", written(".3f")),
        Column("wall_microseconds", "wall µs", written(",.1f"), unit="µs"),
        Column("graph_microseconds", "graph µs", written(",.1f"), unit="µs"),
        Column("peer", "peer", left=True),
    ]
    columns = [column for column in columns if any(row.get(column.key) not in (None, "") for row in rows)]
    return Table(columns, [[row.get(column.key) for column in columns] for row in rows], title=name)


def _chart(name: str, rows: Sequence[Mapping[str, Any]]) -> Bars:
    """Times relative to the peer and the plain twin."""
    series = {
        f"of the {what}": [row.get(f"time_over_{what}") for row in rows]
        for what in ("peer", "twin")
        if any(row.get(f"time_over_{what}") is not None for row in rows)
    }
    labels = [f"{row['case']}, {row['workload']}" for row in rows]
    texts = [
        ", ".join(f"{value:.2f}" for values in series.values() if (value := values[index]) is not None)
        for index in range(len(rows))
    ]
    return Bars(f"{name}: time, {' and '.join(series)}", labels, series, texts)
