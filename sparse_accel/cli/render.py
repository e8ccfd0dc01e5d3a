"""A report as text, Markdown, HTML and plain data: the one place that knows how."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

FORMATS = ("table", "json", "markdown", "html")

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }}
pre {{ overflow-x: auto; line-height: 1.4; }}
</style>
</head>
<body>
<h1>{title}</h1>
<pre>{text}</pre>
{notes}</body>
</html>
"""


def as_text(report: Any, notes: Sequence[str] = ()) -> str:
    """For a terminal: the report's table, then the notes that are not in it.

    Example:
        >>> as_text("a table", ["remarkable"])
        'a table\\nnote: remarkable'
    """
    text = str(report)
    return "\n".join([text, *(f"note: {note}" for note in notes if note not in text)])


def as_plain(report: Any) -> dict[str, Any]:
    """JSON-able data."""
    plain: dict[str, Any] = report.to_plain()
    return plain


def as_markdown(report: Any, title: str, notes: Sequence[str] = ()) -> str:
    """Markdown: the table as it is, the notes as a list.

    Example:
        >>> print(as_markdown("a table", "prune", ["remarkable"]))
        # prune
        <BLANKLINE>
        ```
        a table
        ```
        <BLANKLINE>
        - remarkable
    """
    listed = [f"- {note}" for note in notes]
    return "\n".join([f"# {title}", "", "```", str(report), "```", *([""] if listed else []), *listed])


def as_html(report: Any, title: str, notes: Sequence[str] = ()) -> str:
    """One page that needs nothing else."""
    items = "".join(f"<li>{html.escape(note)}</li>\n" for note in notes)
    listed = f"<ul>\n{items}</ul>\n" if items else ""
    return _PAGE.format(title=html.escape(title), text=html.escape(str(report)), notes=listed)
