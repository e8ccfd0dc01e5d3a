"""Contents as plain text and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparse_accel.report.contents import Contents, Table, number


def format_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> str:
    """A plain-text table: first column left-aligned, the others right-aligned; a row of None is a rule.

    Example:
        >>> print(format_table(["layer", "n"], [["conv", 1200], ["fc", 3]]))
        layer      n
        ------------
        conv   1,200
        fc         3
    """
    cells = [None if not row or row[0] is None else [number(item) for item in row] for row in rows]
    shown = [list(headers), *(row for row in cells if row is not None)]
    widths = [max(len(row[i]) for row in shown) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        return "  ".join([row[0].ljust(widths[0]), *rest]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    body = [rule if row is None else line(row) for row in cells]
    return "\n".join(([title] if title else []) + [line(headers), rule, *body])


def table_text(table: Table) -> str:
    """A table as plain text."""
    rows: list[list[Any]] = [table.shown(row) for row in table.rows]
    if table.total is not None:
        rows += [[None], table.shown(table.total)]
    return format_table(table.heads, rows, title=table.title)


def fact_lines(contents: Contents) -> list[str]:
    """The facts, each on a line but for those that are joined."""
    lines: list[str] = []
    for fact in contents.facts:
        if fact.plain == "":
            continue
        if fact.joined and lines:
            lines[-1] += f"; {fact}"
        else:
            lines.append(str(fact))
    return lines


def plain_text(contents: Contents) -> str:
    """Contents as plain text: tables, facts, parts, notes."""
    lines = [table_text(table) for table in contents.tables if not table.detail]
    lines += fact_lines(contents)
    lines += [plain_text(part) for part in contents.parts]
    return "\n".join([*lines, *map(str, contents.notes)])


def _quoted(text: str) -> str:
    """Text that Markdown takes as it is."""
    for sign in "\\`*_|[]~#":
        text = text.replace(sign, f"\\{sign}")
    for sign, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, name)
    return " ".join(text.splitlines())


def _markdown_table(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(_quoted, cells))} |"

    rule = (
        "| " + " | ".join("---" if i == 0 or column.left else "---:" for i, column in enumerate(table.columns)) + " |"
    )
    rows = [line(table.shown(row)) for row in table.rows]
    if table.total is not None:
        rows.append("| " + " | ".join(f"**{_quoted(c)}**" if c else "" for c in table.shown(table.total)) + " |")
    return "\n".join([line(table.heads), rule, *rows])


def markdown(contents: Contents, level: int = 1) -> str:
    """Contents as GitHub's Markdown; charts are left to pages and files."""
    blocks = [f"{'#' * level} {_quoted(contents.title)}"]
    facts = []
    for fact in contents.facts:
        basis = f" ({_quoted(fact.basis)})" if fact.basis else ""
        detail = f" ({_quoted(fact.detail)})" if fact.detail else ""
        facts.append(f"- {f'**{_quoted(fact.label)}**{basis}: ' if fact.label else ''}{_quoted(fact.value)}{detail}")
    blocks += ["\n".join(facts)] if facts else []
    for table in contents.tables:
        blocks += [f"**{_quoted(table.title)}**"] if table.title else []
        blocks.append(_markdown_table(table))
    notes = [f"- **{_quoted(note.label)}**: {_quoted(note.text)}" if note.label else f"- {_quoted(note.text)}"
             for note in contents.notes]  # fmt: skip
    blocks += ["\n".join(notes)] if notes else []
    blocks += [markdown(part, level + 1) for part in contents.parts]
    return "\n\n".join(blocks)
