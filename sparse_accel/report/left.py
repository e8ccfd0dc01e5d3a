"""What was left out, with the reasons: as notes that name a few of each, and as a table that names all."""

from __future__ import annotations

from collections.abc import Mapping

from sparse_accel.report.contents import Column, Note, Table, percent, share

NAMED = 8  # in a note; the table has all


def left_notes(left: Mapping[str, str], shares: Mapping[str, float] | None = None) -> list[Note]:
    """A note for each reason, with the share of all weights where it is known; what was asked for comes last.

    Args:
        left: reasons by name; ``"skip"`` and ``"targets"`` are what the caller asked for.
        shares: of all weights, by name.

    Example:
        >>> notes = left_notes({"a": "skip", "b": "idle", "c": "idle"}, {"a": 0.25, "b": 0.125, "c": 0.125})
        >>> [str(note) for note in notes]
        ['left dense: b, c: idle (25.0 % of the weights)', 'left dense: a: skip (25.0 % of the weights)']
    """
    names: dict[str, list[str]] = {}
    for name, reason in sorted(left.items(), key=lambda item: item[1] in ("skip", "targets")):
        names.setdefault(reason, []).append(name)
    notes = []
    for reason, group in names.items():
        total = sum((shares or {}).get(name, 0.0) for name in group)
        more = f" and {len(group) - NAMED} more" if len(group) > NAMED else ""
        what = f" ({percent(total, 1)} of the weights)" if shares else ""
        notes.append(
            Note(f"{', '.join(name or 'model' for name in group[:NAMED])}{more}: {reason}{what}", "left dense")
        )
    return notes


def left_tables(left: Mapping[str, str], shares: Mapping[str, float] | None = None) -> list[Table]:
    """All of it as a table for where there is room; none where nothing was left.

    Example:
        >>> left_tables({"a": "skip"}, {"a": 0.25})[0].rows
        [('a', 'skip', 0.25)]
    """
    columns = [Column("name", "name"), Column("reason", "reason", left=True)]
    columns += [Column("share", "of the weights", share)] if shares else []
    rows = [(name or "model", reason, *([shares.get(name)] if shares else [])) for name, reason in left.items()]
    return [Table(columns, rows, title="Left dense", detail=True)] if rows else []
