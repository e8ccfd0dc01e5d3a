"""Tables as data frames."""

from __future__ import annotations

from typing import Any

from sparse_accel.report.contents import Contents


def frame(contents: Contents, index: int = 0) -> Any:
    """A table of the contents as a ``pandas.DataFrame``; see :meth:`sparse_accel.Report.to_frame`."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_frame needs pandas: pip install 'sparse-accel[report]'") from error
    tables = contents.all_tables()
    if not 0 <= index < len(tables):
        raise IndexError(f"table: expected a number from 0 to {len(tables) - 1}, got {index}")
    table = tables[index]
    names = [name for column in table.columns for name in _names(column.key, column.parts)]
    out = pandas.DataFrame(table.records(), columns=names)
    units = {name: column.unit for column in table.columns for name in _names(column.key, column.parts) if column.unit}
    title = table.title or contents.title
    out.attrs.update(title=title, units=units, notes=[str(note) for note in contents.all_notes()])
    return out


def _names(key: str, parts: tuple[str, ...]) -> list[str]:
    return [f"{key}_{part}" for part in parts] or [key]
