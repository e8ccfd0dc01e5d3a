"""Contents as a page that stands alone, and as a piece of a notebook."""

from __future__ import annotations

from collections.abc import Sequence

from sparse_accel.report.contents import Contents, Note, Table
from sparse_accel.report.page.markup import Markup, tag
from sparse_accel.report.page.style import PAGE, STYLE
from sparse_accel.report.page.svg import chart


def page(contents: Contents) -> str:
    """A whole page: no script, no reference to anything outside."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", contents.title),
        tag("style", Markup(PAGE + STYLE)),
    )
    body = tag("body", tag("main", *_blocks(contents, 1), class_="sparse-accel-report"))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def fragment(contents: Contents) -> str:
    """A piece for a notebook's page; its style touches nothing else there."""
    return tag("div", tag("style", Markup(STYLE)), *_blocks(contents, 3), class_="sparse-accel-report")


def _blocks(contents: Contents, level: int) -> list[Markup]:
    """The contents in order: headline figures, charts, tables, notes, parts."""
    named = [fact for fact in contents.facts if fact.label]
    cards = [
        tag(
            "div",
            tag("dt", fact.label),
            tag("dd", fact.value, class_="value"),
            *(tag("dd", text, class_="small") for text in (fact.detail, fact.basis) if text),
        )
        for fact in named
    ]
    blocks = [tag(f"h{min(level, 6)}", contents.title)]
    blocks += [tag("dl", *cards, class_="cards")] if cards else []
    blocks += [tag("p", fact.value) for fact in contents.facts if not fact.label]
    warnings = [note for note in contents.notes if note.warning]
    blocks += [_notes("Warnings", warnings, "notes warning", level)] if warnings else []
    charts = [chart(own) for own in contents.charts if any(map(len, own.series.values()))]
    blocks += [tag("div", *charts, class_="charts")] if charts else []
    blocks += [_table(table, level) for table in contents.tables]
    notes = [note for note in contents.notes if not note.warning]
    blocks += [_notes("Notes", notes, "notes", level)] if notes else []
    for part in contents.parts:
        blocks.append(tag("section", *_blocks(part, level + 1)))
    return blocks


def _table(table: Table, level: int) -> Markup:
    sides = ["left" if index == 0 or column.left else "right" for index, column in enumerate(table.columns)]

    def row(cells: Sequence[str]) -> Markup:
        rest = (tag("td", cell, class_=side) for cell, side in zip(cells[1:], sides[1:], strict=True))
        return tag("tr", tag("th", cells[0], scope="row", class_="left"), *rest)

    heads = tag("tr", *(tag("th", h, scope="col", class_=s) for h, s in zip(table.heads, sides, strict=True)))
    parts = [tag("thead", heads), tag("tbody", *(row(table.shown(own)) for own in table.rows))]
    parts += [] if table.total is None else [tag("tfoot", row(table.shown(table.total)))]
    whole = tag("div", tag("table", *parts), class_="scroll", tabindex="0")
    if table.detail:
        return tag("details", tag("summary", table.title or "More"), whole)
    return tag("section", tag(f"h{min(level + 1, 6)}", table.title), whole) if table.title else whole


def _notes(title: str, notes: Sequence[Note], kind: str, level: int) -> Markup:
    items = []
    for note in notes:
        about = tag("b", note.label + ": ") if note.label and note.label != "note" else ""
        items.append(tag("li", about, note.text))
    return tag("section", tag(f"h{min(level + 1, 6)}", title), tag("ul", *items), class_=kind)
