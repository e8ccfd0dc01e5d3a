"""A picture of several trainings and of what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_accel.report.compact import CompactReport
from sparse_accel.report.contents import Bars, Lines
from sparse_accel.report.figure import draw, draw_bars


def plot_training(
    path: str | Path,
    history: Mapping[str, Sequence[Mapping[str, float]]],
    report: CompactReport,
    *,
    milestones: Sequence[int] = (),
    title: str = "",
) -> Path:
    """Draw accuracy and group sparsity over the epochs, and the channels kept per layer, into one PNG.

    Args:
        path: the file to write.
        history: for every run, by its label, one mapping per epoch with ``"accuracy"`` and, where known,
            ``"group_sparsity"``, both in [0, 1].
        report: of the compact model.
        milestones: epochs after which a stage ended, drawn as lines.
        title: of the figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    return draw(path, [*training_curves(history, milestones), report.channels_kept()], title=title)


def training_curves(
    history: Mapping[str, Sequence[Mapping[str, float]]], milestones: Sequence[int] = ()
) -> list[Bars | Lines]:
    """Accuracy and group sparsity over the epochs, as charts; the arguments are those of :func:`plot_training`."""
    return [
        _curves(history, "accuracy", "Test accuracy", milestones),
        _curves(history, "group_sparsity", "Zero groups", milestones),
    ]


def _curves(
    history: Mapping[str, Sequence[Mapping[str, float]]], key: str, title: str, milestones: Sequence[int]
) -> Lines:
    series = {
        label: [(index, 100 * epoch[key]) for index, epoch in enumerate(epochs, start=1) if key in epoch]
        for label, epochs in history.items()
    }
    lowest = min((y for points in series.values() for _, y in points), default=100.0)
    marks = [milestone + 0.5 for milestone in milestones]
    return Lines(title, "epoch", series, "%", marks, low=10 * (min(lowest, 90.0) // 10), high=101.0)


def plot_channels(axes: Any, report: CompactReport) -> None:
    """Draw the share of the input channels that every layer keeps, with both numbers, on matplotlib axes."""
    draw_bars(axes, report.channels_kept())
