"""What structured pruning did, layer by layer."""

from __future__ import annotations

import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_accel.calibration.batches import Batches
from sparse_accel.prune.refinement.options import RefineOptions, RefineReport
from sparse_accel.prune.refinement.refine import checked_masks, refine_
from sparse_accel.removal.configs import RELOAD, follow_biases
from sparse_accel.removal.remove import RemovalResult
from sparse_accel.removal.surgery import Plan
from sparse_accel.removal.verify import ROUNDED
from sparse_accel.report import (
    Bars,
    Column,
    CompactReport,
    Contents,
    Fact,
    Note,
    Report,
    Table,
    change,
    compare_models,
    percent,
    written,
)
from sparse_accel.report.compact import MACS


@dataclass(frozen=True)
class WidthChange:
    """One width before and after.

    Attributes:
        name: of the width.
        kind: of its units.
        units: before and after.
        consumers: the layers that read the units.
        target: of the refit, by consumer, with ``+relu`` where it knew of the ReLU; empty without a refit.
        error: squared error of the consumers' results relative to the variation of their targets, before and after the
            refit, averaged over the consumers; None where no statistics were taken.
        seconds: that it took.
        note: what was not as usual; empty mostly.
    """

    name: str
    kind: str
    units: tuple[int, int]
    consumers: tuple[str, ...]
    target: str
    error: tuple[float, float] | None
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class StructuredReport(Report):
    """What was pruned and what it cost; a table when printed.

    Attributes:
        widths: in the order in which they were pruned.
        totals: layers, parameters, MACs and latency of the dense and the pruned model.
        seconds: of the whole run.
        nbytes: stated for the statistics before the run.
        notes: fallbacks, and widths that could not be pruned, with the reason.
        refinement: what ``refine`` did; None without it.
    """

    widths: list[WidthChange]
    totals: CompactReport
    seconds: float
    nbytes: int
    notes: list[str] = field(default_factory=list)
    refinement: RefineReport | None = None

    @property
    def params(self) -> tuple[int, int]:
        """Elements of all parameters, before and after."""
        return self.totals.params

    @property
    def macs(self) -> tuple[int, int]:
        """Multiply-accumulates of one run on the example, before and after."""
        return self.totals.macs

    @property
    def latency_ms(self) -> tuple[float, float] | None:
        """Median wall time of one run on the example, before and after."""
        return self.totals.latency_ms

    def to_plain(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        refinement = None if self.refinement is None else self.refinement.to_plain()
        return asdict(self) | {"refinement": refinement}

    def contents(self) -> Contents:
        """See :class:`~sparse_accel.Report`."""
        ends = ("before", "after")
        columns = [
            Column("width", "width"),
            Column("kind", "kind", left=True),
            Column("units", "units", change, parts=ends),
            Column("error", "error", written(".4f")),
            Column("error_refit", "after refit", written(".4f")),
            Column("target", "target", left=True),
            Column("seconds", "seconds", written(".2f"), unit="s"),
        ]
        rows = [
            (at.name, at.kind, at.units, *((None, None) if at.error is None else at.error), at.target, at.seconds)
            for at in self.widths
        ]
        facts = [
            Fact("parameters", change(self.params), f"{percent(self.params[1], self.params[0])} kept"),
        ]
        if any(self.macs):
            facts.append(Fact("MACs", change(self.macs), f"{percent(self.macs[1], self.macs[0])} kept", basis=MACS))
        if self.latency_ms:
            facts.append(Fact("latency on the example", " → ".join(f"{ms:.3g} ms" for ms in self.latency_ms)))
        facts.append(Fact("", f"{self.seconds:.1f} s; statistics {self.nbytes / 1e6:.1f} MB"))
        layers = replace(self.totals.contents().tables[0], title="Layers", detail=True)
        parts = [] if self.refinement is None else [self.refinement.contents()]
        notes = [Note(note) for note in self.notes]
        charts = [*self._charts(), *self.totals.costs_kept()]
        return Contents("Structured pruning (ISpaSP)", facts, [Table(columns, rows), layers], charts, parts, notes)

    def _charts(self) -> list[Bars]:
        """Units kept and errors, by width."""
        names = [width.name for width in self.widths]
        kept = [100 * now / before if before else 0.0 for before, now in (width.units for width in self.widths)]
        texts = [f"{now:,} of {before:,}" for before, now in (width.units for width in self.widths)]
        charts = [Bars("Units kept", names, {"kept": kept}, texts, whole=100.0, unit="%")]
        known = [(width.name, width.error) for width in self.widths if width.error is not None]
        if known:
            errors = {
                "before the refit": [error[0] for _, error in known],
                "after the refit": [error[1] for _, error in known],
            }
            charts.append(Bars("Relative error of what reads them", [name for name, _ in known], errors))
        return charts


def left_stacks(model: nn.Module, touched: Container[str] = ()) -> list[str]:
    """A note for every stack of matrices in one parameter (the experts of a mixture), with its share of the weights.

    Their units are not found: no module reads them. Convolutions are no stacks, nor is what a removal has cut.

    Example:
        >>> import torch
        >>> layer = nn.Linear(4, 6)
        >>> layer.experts = nn.Parameter(torch.zeros(3, 4, 2))
        >>> left_stacks(layer)
        ['experts (Linear): left whole: units of a parameter of 3 dimensions are not found: 50.0 % of the weights']
    """
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() >= 2}
    total = sum(parameter.numel() for parameter in weights.values())
    notes = []
    for name, parameter in weights.items():
        module = model.get_submodule(name.rpartition(".")[0])
        if parameter.dim() >= 3 and not isinstance(module, nn.modules.conv._ConvNd) and name not in touched:
            notes.append(
                f"{name} ({type(module).__name__}): left whole: units of a parameter of {parameter.dim()} dimensions "
                f"are not found: {percent(parameter.numel(), total)} of the weights"
            )
    return notes


@dataclass
class StructuredResult:
    """What :meth:`ISpaSP.run` returns; :func:`sparse_accel.save` takes it.

    Attributes:
        model: the smaller model, a copy, in the mode of the original.
        plan: what was removed, as plain JSON-able data.
        report: per width and in total; a table when printed.
        kept: units kept, by width; of stacked experts a list for each.
        max_abs_diff: largest difference on the example between the model with zeroed units and the one without them.
        optimizer: None.
    """

    model: nn.Module
    plan: Plan
    report: StructuredReport
    kept: dict[str, list[Any]]
    max_abs_diff: float
    optimizer: Optimizer | None = None


def finished(
    removed: RemovalResult,
    dense: nn.Module,
    work: nn.Module,
    example_inputs: Any,
    kept: Mapping[str, Tensor],
    changes: Sequence[WidthChange],
    notes: Sequence[str],
    *,
    nbytes: int,
    start: float,
    measure: bool = True,
) -> StructuredResult:
    """The result of a run.

    Args:
        removed: the smaller model; gets the modes of the dense one, and its plan the biases that the refit made.
        dense: the model as it was.
        work: the one of full size with zeros in place of what is gone.
        example_inputs: that costs are taken on.
        kept: units by width.
        changes: of the widths.
        notes: of the report.
        nbytes: stated before the run.
        start: of the run, by ``time.perf_counter``.
        measure: whether to count MACs and take times.
    """
    small, plan = removed.model, removed.plan
    for name, _ in work.named_parameters():
        path, _, key = name.rpartition(".")
        if dense.get_submodule(path)._parameters.get(key) is None:
            shape = list(small.get_parameter(name).shape)
            plan["tensors"].pop(name, None)
            plan["created"][name] = {"shape": shape, "like": f"{path}.weight" if path else "weight"}
    follow_biases(dense, small, plan)
    notes = [
        *notes,
        *(note for note in plan["notes"] if note.startswith((RELOAD, ROUNDED))),
        *left_stacks(dense, plan["tensors"]),
    ]
    modes = {name: module.training for name, module in dense.named_modules()}
    for name, module in small.named_modules():
        module.training = modes.get(name, dense.training)
    seconds = time.perf_counter() - start
    totals = compare_models(dense, small, example_inputs, removed.max_abs_diff, measure=measure)
    report = StructuredReport(list(changes), totals, seconds, nbytes, notes)
    chosen = {name: units.tolist() for name, units in kept.items()}
    return StructuredResult(small, plan, report, chosen, removed.max_abs_diff)


def refine_result(
    result: StructuredResult, dense: nn.Module, data: Batches, options: RefineOptions, max_memory: int | None
) -> None:
    """Fit a result's model to the dense one, in place; its report says what came of it.

    Args:
        result: of a run.
        dense: the model as it was.
        data: that it was pruned on.
        options: of the refinement.
        max_memory: bytes that it may take.

    Raises:
        Exception: what the refinement raises; its ``result`` is the one that was to be refined.
    """
    start = time.perf_counter()
    try:
        refinement = refine_(result.model, dense, data, None, checked_masks(result.model, None), options, max_memory)
    except Exception as error:
        error.result = result  # type: ignore[attr-defined]
        raise
    seconds = result.report.seconds + time.perf_counter() - start
    result.report = replace(result.report, seconds=seconds, refinement=refinement)
