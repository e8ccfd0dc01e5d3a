"""Elements of HTML and SVG: text inside them is escaped unless it is an element itself."""

from __future__ import annotations

import html

VOID = {"meta"}


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str) -> Markup:
    """An element.

    Args:
        name: of the element.
        children: elements, or text, which is escaped.
        attributes: ``class_`` is ``class``, other underscores are hyphens.

    Example:
        >>> tag("td", "<script>", class_="name")
        '<td class="name">&lt;script&gt;</td>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items()
    )
    if name in VOID:
        return Markup(f"<{name}{written}>")
    inside = "".join(child if isinstance(child, Markup) else html.escape(_visible(child)) for child in children)
    return Markup(f"<{name}{written}>{inside}</{name}>")


def _visible(text: str) -> str:
    """Text without the control characters that HTML forbids."""
    return "".join(sign if sign >= " " or sign in "\n\t" else "�" for sign in text)
