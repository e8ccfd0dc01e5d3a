"""Contents in a terminal, with rich where it is installed."""

from __future__ import annotations

from typing import IO, Any

from sparse_accel.report.contents import Contents
from sparse_accel.report.text import fact_lines, plain_text


def show(contents: Contents, file: IO[str]) -> None:
    """Print contents to a file: with colours if it is a terminal and rich is installed, else as plain text."""
    isatty = getattr(file, "isatty", None)
    if isatty is not None and isatty():
        try:
            from rich.console import Console
        except ImportError:
            pass
        else:
            Console(file=file).print(renderable(contents))
            return
    file.write(plain_text(contents) + "\n")


def renderable(contents: Contents, nested: bool = False) -> Any:
    """What rich prints: names and sentences are text, never its markup."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    blocks: list[Any] = [Text(contents.title, style="bold" if nested else "bold cyan")]
    for table in contents.tables:
        if table.detail:
            continue
        out = Table(title=table.title or None, title_justify="left", header_style="bold", show_footer=False)
        for index, column in enumerate(table.columns):
            left = index == 0 or column.left
            out.add_column(Text(column.head), justify="left" if left else "right", overflow="fold")
        for row in table.rows:
            out.add_row(*map(Text, table.shown(row)))
        if table.total is not None:
            out.add_section()
            out.add_row(*map(Text, table.shown(table.total)), style="bold")
        blocks.append(out)
    blocks += [Text(line) for line in fact_lines(contents)]
    blocks += [renderable(part, nested=True) for part in contents.parts]
    blocks += [Text(str(note), style="yellow" if note.warning else "dim") for note in contents.notes]
    return Group(*blocks)
