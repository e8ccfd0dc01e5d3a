"""Results as pictures: a roofline of all rows, and bars of each bench's times over those of its rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_RIVALS = {"peer": "time_over_peer", "compiled": "time_over_compiled", "plain twin": "time_over_twin"}


def plot(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write PNG files.

    Args:
        content: machine and rows, see :func:`sparse_accel.bench.compare.read`.
        folder: where; made where it is not.

    Returns:
        The files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in content["rows"]:
        groups.setdefault((row["bench"], row["dtype"]), []).append(row)
    files = [_roofline(content, folder / "roofline.png")] if content["rows"] else []
    return files + [_bars(key, rows, folder / f"{key[0]}-{key[1]}.png") for key, rows in groups.items()]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no state of a display

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _title(machine: Mapping[str, Any]) -> str:
    where = machine.get("gpu") or f"{machine.get('cpu')}, {machine.get('threads')} threads"
    return f"{where}; torch {machine.get('torch')}; {machine.get('date')}"


def _roofline(content: Mapping[str, Any], file: Path) -> Path:
    """Speed over the bytes that have to be moved; the roof is a copy of as many bytes. All that is here moves memory: a
    roof of arithmetic would be far above."""
    figure, axes = _figure(9, 5.5)
    rows = content["rows"]
    for number, bench in enumerate(dict.fromkeys(row["bench"] for row in rows)):
        own = [row for row in rows if row["bench"] == bench]
        marker = "osD^vP*Xd<>p"[number % 12]
        axes.scatter(
            [row["bytes_moved"] / 1e6 for row in own], [row["gb_per_s"] for row in own],
            s=26, alpha=0.75, marker=marker, label=bench,
        )  # fmt: skip
    roof = sorted((row["bytes_moved"] / 1e6, row["gb_per_s"] * 100 / row["percent_of_copy"]) for row in rows)
    axes.plot(*zip(*roof, strict=True), color="black", linewidth=1, label="a copy of as many bytes")
    axes.set(xscale="log", yscale="log", xlabel="least bytes to move, MB", ylabel="GB/s")
    axes.set_title(f"sparse_accel: speed beside a copy\n{_title(content['machine'])}", fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(file, dpi=130)
    return file


def _bars(key: tuple[str, str], rows: Sequence[Mapping[str, Any]], file: Path) -> Path:
    """Times of the rivals over ours: longer is slower than ours."""
    rivals = {name: entry for name, entry in _RIVALS.items() if any(row.get(entry) for row in rows)}
    figure, axes = _figure(9, 1.4 + len(rows) * (0.12 + 0.14 * max(1, len(rivals))))
    step = 0.8 / max(1, len(rivals))
    for number, (name, entry) in enumerate(rivals.items()):
        places = [index + number * step for index, row in enumerate(rows) if row.get(entry)]
        axes.barh(places, [1 / row[entry] for row in rows if row.get(entry)], height=step, label=name)
    labels = [f"{row['case']}, {row['workload']}: {row['microseconds']:,.0f} µs" for row in rows]
    axes.set_yticks([index + 0.4 - step / 2 for index in range(len(rows))], labels, fontsize=7)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="their time over ours; right of the line ours is faster")
    axes.set_title(f"{key[0]}, {key[1]}", fontsize=10)
    axes.invert_yaxis()
    axes.grid(True, axis="x", which="major", alpha=0.3)
    if rivals:
        axes.legend(fontsize=8)
    figure.savefig(file, dpi=130)
    return file
