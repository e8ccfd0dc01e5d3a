"""Charts as SVG inside a page: its colours follow the page, its text can be read on a phone."""

from __future__ import annotations

import math

from sparse_accel.report.contents import Bars, Lines, tints
from sparse_accel.report.page.markup import Markup, tag

WIDTH = 420  # units; a phone shows them at about 6/7 of their size, so that text of 14 stays readable
BAR = 8
LEFT, RIGHT, TOP, HEIGHT = 52, 14, 10, 240


def chart(of: Bars | Lines) -> Markup:
    """A chart with its title and the names of its series."""
    drawn = _bars(of) if isinstance(of, Bars) else _lines(of)
    names = list(of.series)
    keys = (tag("span", name, class_=f"key k{tint}") for name, tint in zip(names, tints(names), strict=True))
    legend = tag("p", *keys, class_="legend")
    unit = f" ({of.unit})" if of.unit and of.unit not in of.title else ""
    return tag(
        "figure",
        tag("figcaption", of.title + unit),
        legend if len(names) > 1 else "",
        tag("div", drawn, class_="scroll", tabindex="0"),
    )


def _svg(height: float, *children: Markup, label: str) -> Markup:
    return tag("svg", *children, viewBox=f"0 0 {WIDTH} {_n(height)}", role="img", aria_label=label)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def clipped(text: str, most: int) -> str:
    """A long name without its middle.

    Example:
        >>> clipped("model.layers.0.mlp.down_proj", 20)
        'model.lay…own_proj'
    """
    half = (most - 2) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[len(text) - half + 1 :]}"


def _bars(of: Bars) -> Markup:
    most, parts, y = of.most(), [], 0.0
    for row, name in enumerate(of.labels):
        told = of.told(row)
        y += 18
        parts.append(tag("text", tag("title", name), clipped(name, max(12, 50 - len(told))), x="0", y=_n(y)))
        parts.append(tag("text", told, x=str(WIDTH), y=_n(y), class_="at-end"))
        y += 6
        for tint, values in zip(tints(of.series), of.series.values(), strict=True):
            value = values[row]
            if of.whole is not None:
                parts.append(tag("rect", x="0", y=_n(y), width=str(WIDTH), height=str(BAR), rx="3", class_="track"))
            if value is not None and math.isfinite(value):
                length = WIDTH * min(1.0, max(0.0, value / most))
                box = {"x": "0", "y": _n(y), "width": _n(length), "height": str(BAR), "rx": "3"}
                parts.append(tag("rect", **box, class_=f"fill f{tint}"))
            y += BAR + 2
        y += 4
    return _svg(max(y, 1), *parts, label=of.title)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two ends.

    Example:
        >>> ticks(0, 1), ticks(3, 47)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [10.0, 20.0, 30.0, 40.0])
    """
    span = high - low
    if not span > 0:
        return [float(low)]
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first
    return [float(f"{(first + i) * step:.12g}") for i in range(count + 1)]


def _lines(of: Lines) -> Markup:
    series = of.points()
    points = [point for own in series.values() for point in own]
    xs, ys = ([point[i] for point in points] or [0.0] for i in (0, 1))
    low = min(ys) if of.low is None else of.low
    high = max(ys) if of.high is None else of.high
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    left, right = min(xs), max(xs)
    bottom = TOP + HEIGHT

    def at(point: tuple[float, float]) -> tuple[str, str]:
        across = (point[0] - left) / (right - left) if right > left else 0.5
        up = (min(max(point[1], low), high) - low) / (high - low)
        return _n(LEFT + across * (WIDTH - LEFT - RIGHT)), _n(bottom - up * HEIGHT)

    parts = []
    for tick in ticks(low, high):
        y = at((left, tick))[1]
        parts.append(tag("line", x1=str(LEFT), x2=str(WIDTH - RIGHT), y1=y, y2=y, class_="grid"))
        parts.append(tag("text", f"{tick:.4g}", x=str(LEFT - 8), y=_n(float(y) + 5), class_="at-end faint"))
    for mark in of.marks:
        if left <= mark <= right:
            x = at((mark, low))[0]
            parts.append(tag("line", x1=x, x2=x, y1=str(TOP), y2=str(bottom), class_="mark"))
    whole = all(float(x).is_integer() for x in xs)
    shown = [tick for tick in ticks(left, right) if tick.is_integer() or not whole]
    places = [at((tick, low))[0] for tick in shown]
    parts += [
        tag("text", f"{tick:.6g}", x=x, y=str(bottom + 20), class_="at-middle faint")
        for tick, x in zip(shown, places, strict=True)
    ]
    parts.append(tag("text", of.x, x=_n((LEFT + WIDTH - RIGHT) / 2), y=str(bottom + 40), class_="at-middle faint"))
    for tint, own in zip(tints(series), series.values(), strict=True):
        curve = [at(point) for point in own]
        if len(curve) > 1:
            parts.append(tag("polyline", points=" ".join(map(",".join, curve)), class_=f"curve c{tint}"))
        if curve:
            parts.append(tag("circle", cx=curve[-1][0], cy=curve[-1][1], r="4", class_=f"fill f{tint}"))
    return _svg(bottom + 48, *parts, label=of.title)
