"""Figures of several models on the same data, as a table, a plot and plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparse_accel.diagnostics.sparsity import sparsity
from sparse_accel.report import (
    Column,
    CompactReport,
    Contents,
    Note,
    Report,
    Table,
    count_macs,
    format_table,
    plot_training,
)
from sparse_accel.report.training import training_curves

from .training import Epoch, Images, accuracy, latencies_ms


@dataclass(frozen=True)
class ModelFigures:
    """One model: shares in [0, 1]; MACs of one image; latency of one batch (the test images it was taken with)."""

    accuracy: float
    groups: int
    group_sparsity: float
    weighted_group_sparsity: float
    parameters: int
    macs: int
    latency_ms: float


@dataclass(frozen=True)
class Targets:
    """What a compact model has to reach beside its dense control; all but the differences in shares."""

    accuracy_loss: float
    removed_groups: float
    max_abs_diff: float

    def missed(
        self, dense: ModelFigures, compact: ModelFigures, max_abs_diff: float, checkpoint_equal: bool
    ) -> tuple[str, ...]:
        """A sentence for each target that the compact model misses."""
        loss = dense.accuracy - compact.accuracy
        removed = 1 - compact.groups / dense.groups
        checks = (
            (
                loss <= self.accuracy_loss + 1e-9,
                f"{100 * loss:.2f} points of accuracy are lost, at most {100 * self.accuracy_loss:g} wanted",
            ),
            (
                removed >= self.removed_groups,
                f"{100 * removed:.1f} % of the groups are removed, at least {100 * self.removed_groups:g} % wanted",
            ),
            (
                max_abs_diff <= self.max_abs_diff,
                f"outputs differ by {max_abs_diff:.2g}, at most {self.max_abs_diff:g} wanted",
            ),
            (checkpoint_equal, "the checkpoint, loaded again, gives other outputs"),
        )
        return tuple(sentence for met, sentence in checks if not met)


def measure(
    models: Mapping[str, nn.Module], images: Images, *, by: str = "input", batch: int = 256
) -> dict[str, ModelFigures]:
    """Figures of each model; latencies are medians, the models taking turns on one batch of test images."""
    taken = latencies_ms(list(models.values()), images.test_x[:batch])
    figures = {}
    for (label, model), latency in zip(models.items(), taken, strict=True):
        counted = sparsity(model, by)
        figures[label] = ModelFigures(
            accuracy=accuracy(model, images.test_x, images.test_y),
            groups=counted.groups,
            group_sparsity=counted.group_sparsity,
            weighted_group_sparsity=counted.weighted_group_sparsity,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            macs=count_macs(model, images.test_x[:1])[""],
            latency_ms=latency,
        )
    return figures


def rows(
    figures: Mapping[str, ModelFigures], max_abs_diff: Mapping[str, float], *, batch: int = 256
) -> list[list[Any]]:
    """The models side by side; ``max_abs_diff`` of compact ones against the model they were made from."""
    models = list(figures.values())
    return [
        ["accuracy", *(f"{100 * m.accuracy:.2f} %" for m in models)],
        ["groups (input channels)", *(m.groups for m in models)],
        ["zero groups", *(f"{100 * m.group_sparsity:.1f} %" for m in models)],
        ["zero groups, by size", *(f"{100 * m.weighted_group_sparsity:.1f} %" for m in models)],
        ["parameters", *(m.parameters for m in models)],
        ["MACs per image ¹", *(m.macs for m in models)],
        [f"latency, batch of {batch} ²", *(f"{m.latency_ms:.2f} ms" for m in models)],
        ["largest output difference", *(f"{max_abs_diff[k]:.1e}" if k in max_abs_diff else "" for k in figures)],
    ]


def footnotes() -> tuple[str, str]:
    """Of the table."""
    return (
        "¹ multiply-accumulates: FLOPs of torch.utils.flop_counter / 2",
        f"² median, models taking turns, CPU threads: {torch.get_num_threads()}",
    )


def table(figures: Mapping[str, ModelFigures], max_abs_diff: Mapping[str, float], *, batch: int = 256) -> str:
    """:func:`rows` as plain text."""
    return "\n".join([format_table(["", *figures], rows(figures, max_abs_diff, batch=batch)), "   ".join(footnotes())])


@dataclass(frozen=True)
class DemoReport(Report):
    """The demo as a report.

    Attributes:
        title: of it.
        figures: of each model, by its label.
        max_abs_diff: of compact models against those that they were made from.
        histories: of the trainings, by label.
        compact: what was removed.
        milestones: epochs after which a stage ended.
        missed: a sentence for each target that was missed.
    """

    title: str
    figures: Mapping[str, ModelFigures]
    max_abs_diff: Mapping[str, float]
    histories: Mapping[str, Sequence[Epoch]]
    compact: CompactReport
    milestones: Sequence[int] = ()
    missed: Sequence[str] = ()

    def contents(self) -> Contents:
        """See :class:`~sparse_accel.Report`."""
        columns = [Column("figure", ""), *(Column(label, label) for label in self.figures)]
        plain = {label: [epoch._asdict() for epoch in epochs] for label, epochs in self.histories.items()}
        notes = [Note(sentence, "target missed", warning=True) for sentence in self.missed]
        notes += [Note(text, "") for text in footnotes()]
        return Contents(
            self.title,
            tables=[Table(columns, rows(self.figures, self.max_abs_diff))],
            charts=training_curves(plain, self.milestones),
            parts=[self.compact.contents()],
            notes=notes,
        )


def plot(
    path: Path,
    histories: Mapping[str, Sequence[Epoch]],
    report: CompactReport,
    *,
    milestones: Sequence[int] = (),
    title: str = "",
) -> Path:
    """Accuracy and zero groups over the epochs, and the channels kept in each layer, as a PNG."""
    plain = {label: [epoch._asdict() for epoch in epochs] for label, epochs in histories.items()}
    return plot_training(path, plain, report, milestones=milestones, title=title)
