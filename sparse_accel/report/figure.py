"""Charts as a picture, with matplotlib."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_accel.report.contents import Bars, Lines, Note, tints

logger = logging.getLogger("sparse_accel.report")

SUFFIXES = (".png", ".svg", ".pdf")
COLORS = ("#868e96", "#e8590c", "#1971c2", "#2f9e44", "#9c36b5")


def draw(
    path: str | Path, charts: Sequence[Bars | Lines], *, title: str = "", notes: Sequence[Note] = (), dpi: int = 110
) -> Path:
    """Draw charts side by side into one file, at most three in a row, with the notes below.

    Args:
        path: the file to write; its suffix says the format.
        charts: at least one.
        title: of the picture.
        notes: what was left out or assumed.
        dpi: pixels per inch of a PNG.

    Raises:
        ValueError: the suffix is none of ``.png``, ``.svg`` and ``.pdf``.
        ImportError: matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"path: expected a name that ends in {', '.join(SUFFIXES)}, got {str(path)!r}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'sparse-accel[report]'") from error
    rows = _rows(charts)
    heights = [max(map(_height, row)) for row in rows]
    told = [_wrapped(str(note)) for note in notes]
    shown = told[:6] + ([f"… and {len(told) - 6} more notes"] if len(told) > 6 else [])
    columns = max(map(len, rows))
    extra = 0.16 * sum(text.count("\n") + 1 for text in shown) + 0.5
    figure = Figure(figsize=(max(4.4 * columns, 6.0), sum(heights) + extra), layout="constrained")
    if title:
        figure.suptitle(_plain(title), fontweight="bold")
    grid = figure.add_gridspec(len(rows), columns, height_ratios=heights)
    for y, row in enumerate(rows):
        for x, chart in enumerate(row):
            axes = figure.add_subplot(grid[y, x])
            draw_bars(axes, chart) if isinstance(chart, Bars) else draw_lines(axes, chart)
    if shown:
        figure.supxlabel(_plain("\n".join(shown)), x=0.01, ha="left", fontsize=8, color="0.35")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    logger.info("wrote %s", path)
    return path


def _rows(charts: Sequence[Bars | Lines]) -> list[list[Bars | Lines]]:
    """At most three in a row, and those of like heights alone: a short one beside a tall one would be drawn out."""
    rows: list[list[Bars | Lines]] = []
    for chart in charts:
        like = rows and max(_height(chart), _height(rows[-1][0])) < 1.6 * min(_height(chart), _height(rows[-1][0]))
        if like and len(rows[-1]) < 3:
            rows[-1].append(chart)
        else:
            rows.append([chart])
    return rows


def _height(chart: Bars | Lines) -> float:
    """Inches; a model of a thousand layers still makes a picture that can be opened."""
    if isinstance(chart, Lines):
        return 3.6
    return min(max(3.6, 0.8 + 0.24 * len(chart.labels) * max(1, 0.6 * len(chart.series))), 60.0)


def _wrapped(text: str, width: int = 140) -> str:
    import textwrap

    return textwrap.shorten(text, 3 * width, placeholder=" …") if len(text) > 3 * width else textwrap.fill(text, width)


def _plain(text: str) -> str:
    """Text in which a dollar sign starts no formula."""
    return text.replace("$", r"\$")


def draw_lines(axes: Any, chart: Lines) -> None:
    """Draw curves on matplotlib axes."""
    from matplotlib.ticker import MaxNLocator

    series = chart.points()
    for (label, points), tint in zip(series.items(), tints(series), strict=True):
        color = COLORS[tint]
        if points:
            axes.plot(*zip(*points, strict=True), label=_plain(label), color=color, linewidth=2, clip_on=False)
            axes.plot(*points[-1], "o", color=color, markersize=5, clip_on=False)
    for mark in chart.marks:
        axes.axvline(mark, color="0.75", linewidth=1, linestyle=":", zorder=0)
    if all(float(x).is_integer() for points in series.values() for x, _ in points):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=_plain(chart.x), title=_plain(_title(chart)))
    if chart.low is not None or chart.high is not None:
        axes.set_ylim(chart.low, chart.high)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(frameon=False)


def draw_bars(axes: Any, chart: Bars) -> None:
    """Draw horizontal bars on matplotlib axes, the first label on top."""
    count, most = len(chart.series), chart.most()
    size = 9 if len(chart.labels) <= 16 else 7
    thick = 0.7 / max(1, count)
    positions = list(range(len(chart.labels)))
    for index, ((name, values), tint) in enumerate(zip(chart.series.items(), tints(chart.series), strict=True)):
        places = [y - 0.35 + thick * (index + 0.5) for y in positions]
        if chart.whole is not None:
            axes.barh(places, [chart.whole] * len(places), color="0.92", height=thick)
        lengths = [value if value is not None and math.isfinite(value) else 0.0 for value in values]
        axes.barh(places, lengths, color=COLORS[tint], height=thick, label=_plain(name))
    for y in positions:
        axes.annotate(_plain(chart.told(y)), (1.02 * most, y), va="center", fontsize=size, annotation_clip=False)
    axes.set_yticks(positions, [_plain(label) for label in chart.labels], fontsize=size)
    axes.set_ylim(len(positions) - 0.4, -0.6)  # the first on top, no room to spare
    axes.set(xlabel=_plain(chart.unit), xlim=(0, most))
    axes.set_title(_plain(chart.title), pad=22 if count > 1 else None)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if count > 1:
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=count)


def _title(chart: Lines) -> str:
    return chart.title if not chart.unit or chart.unit in chart.title else f"{chart.title} ({chart.unit})"
