"""Dropout stability: what a trained network loses when a share of its units goes and the others make up for it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel._modes import outside_inference_mode
from sparse_accel.channels.graph import UnsupportedModelError
from sparse_accel.channels.widths import Width, Widths, grouped
from sparse_accel.diagnostics._outer import Moments, choose_units, rescale, untreated
from sparse_accel.diagnostics._passes import Bench, Loss, Samples, same_random_state
from sparse_accel.progress import Meter, Show, check_progress, meter
from sparse_accel.removal.remove import find_widths
from sparse_accel.report import Bars, Column, Contents, Fact, Note, Report, Table, written


@dataclass(frozen=True)
class LayerDropout:
    """The loss with units of one layer dropped, or of all at once.

    Attributes:
        name: of the width; ``"all at once"``.
        kind: ``"channels"`` or ``"heads"``.
        units: how many there are; of all at once, in the smallest width.
        kept: how many stay.
        losses: one of each trial.
        changes: the losses minus that of the whole network.
    """

    name: str
    kind: str
    units: int
    kept: int
    losses: tuple[float, ...]
    changes: tuple[float, ...]

    @property
    def change(self) -> float:
        """The mean over the trials of ``|change|``."""
        return sum(abs(change) for change in self.changes) / len(self.changes)

    @property
    def worst(self) -> float:
        """The largest change of a trial: how much the loss may rise."""
        return max(self.changes)

    @property
    def rate(self) -> float:
        """``sqrt(log M / M)`` of M units: how the change shrinks with the width in the mean-field regime."""
        return math.sqrt(math.log(self.units) / self.units)


@dataclass(frozen=True)
class DropoutReport(Report):
    """What :func:`dropout_stability` found; a table when printed.

    Attributes:
        loss: of the whole network.
        keep: the share of the units that stays.
        refit: whether the weights on the units kept were refitted, or rescaled.
        trials: sets of units tried.
        layers: one row per width.
        together: all of them at once.
        skipped: layers whose units stay, and why, by name.
    """

    loss: float
    keep: float
    refit: bool
    trials: int
    layers: list[LayerDropout]
    together: LayerDropout
    skipped: dict[str, str]

    def to_plain(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        rows = [{**asdict(row), "change": row.change, "worst": row.worst} for row in (*self.layers, self.together)]
        return {
            "loss": self.loss,
            "keep": self.keep,
            "refit": self.refit,
            "trials": self.trials,
            "layers": [{**row, "losses": [*row["losses"]], "changes": [*row["changes"]]} for row in rows[:-1]],
            "together": {**rows[-1], "losses": [*rows[-1]["losses"]], "changes": [*rows[-1]["changes"]]},
            "skipped": dict(self.skipped),
        }

    def contents(self) -> Contents:
        """See :class:`~sparse_accel.Report`."""
        how = "refitted by least squares" if self.refit else "rescaled"
        facts = [
            Fact("loss of the whole network", f"{self.loss:.4g}"),
            Fact("", f"{100 * self.keep:.4g} % of the units kept, their outer weights {how}; {self.trials} trials"),
        ]
        columns = [
            Column("layer", "layer"),
            Column("kind", "kind", left=True),
            Column("units", "units"),
            Column("kept", "kept"),
            Column("change", "mean |change|"),
            Column("worst", "largest rise"),
            Column("rate", "sqrt(log M / M)", written(".4g")),
        ]

        def row(of: LayerDropout) -> list[Any]:
            return [of.name or "model", of.kind, of.units, of.kept, of.change, of.worst, of.rate]

        rows = [row(layer) for layer in self.layers]
        names, changes = [of.name or "model" for of in self.layers], [of.change for of in self.layers]
        charts = [Bars("Mean |change| of the loss", names, {"dropped": changes})]
        notes = [Note(line, "not treated") for line in grouped(self.skipped)]
        return Contents("Dropout stability", facts, [Table(columns, rows, row(self.together))], charts, notes=notes)


@outside_inference_mode
def dropout_stability(
    model: nn.Module,
    loss: Loss,
    data: Any,
    keep: float = 0.5,
    layers: Sequence[str] | None = None,
    *,
    trials: int = 5,
    refit: bool = False,
    seed: int = 0,
    batch_size: int = 256,
    progress: Show = None,
) -> DropoutReport:
    """Drop a random share of the units of every layer, let the others make up for it, and see how the loss changes.

    A network that stochastic heavy ball (or SGD) has trained in the mean-field regime is an average over many units,
    and half of them give nearly the same: the change shrinks like ``sqrt(log M / M)`` with M units. Of a kept set A of
    N units, whatever reads the units is multiplied by ``N / |A|`` on A and by 0 elsewhere; with ``refit`` it takes the
    least-squares weights on A (and a new bias, where it has one) that come closest to what it gave before, over all
    positions of the data, those of padding too. "All at once" drops in all layers together, front to back.

    Units are those of :func:`sparse_accel.prune.find_widths`: neurons of an MLP, channels of a convolution, hidden
    neurons and heads of a Transformer. Residual streams, stacked experts and units that a response normalization
    divides by a mean over them are left alone, and named with the reason in ``skipped``; so are layers of which no unit
    can go.

    A copy is changed, in eval mode: parameters, buffers, modes, gradients and hooks of the model stay, and so do the
    random numbers of torch, numpy and Python.

    Args:
        model: of any mode; wrappers as for :func:`sparse_accel.compact`.
        loss: ``loss(output, targets)``, the mean over a batch, such as ``torch.nn.functional.cross_entropy``.
        data: ``(inputs, targets)`` as tensors; an iterable of such pairs (a DataLoader); or of mappings of keyword
            inputs, which the loss gets as its second argument. Iterated over once for each loss.
        keep: share of each layer's units that stays, in (0, 1].
        layers: names of the widths to drop in; all that can be treated without it.
        trials: random sets for each layer.
        refit: refit instead of rescaling.
        seed: of the sets; those of one layer do not depend on the others.
        batch_size: of the batches that tensors are split into.
        progress: True, False or a function, see :mod:`sparse_accel.progress`: a step is a random set of a layer.

    Returns:
        A table when printed.

    Raises:
        ValueError: an argument is out of range, a layer in ``layers`` is none or cannot be treated, or the loss is not
            finite; the message names it.
        UnsupportedModelError: the forward pass cannot be followed, or no layer can be treated; the message names the
            model and says why.

    Source:
        D. Wu, V. Kungurtsev, M. Mondelli, *Mean-field analysis for heavy ball methods: dropout-stability, connectivity,
        and global convergence*; the refit is ours.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> data = torch.randn(50, 3), torch.randint(2, (50,))
        >>> report = dropout_stability(net, nn.functional.cross_entropy, data, keep=1.0)
        >>> report.layers[0].name, report.layers[0].kept, report.layers[0].change
        ('0', 64, 0.0)
    """
    _check(keep, trials, seed, layers)
    check_progress(progress)
    samples = Samples(data, batch_size)
    with same_random_state():
        work = Bench(model, loss, samples)
        widths = find_widths(work.model, samples.first_inputs(work.device))
        chosen, skipped = _choose(model, widths, layers, refit)
        sets = {width.name: _sets(width, keep, trials, seed) for width in chosen}
        base = work.finite_loss("model")
        rows = []
        total = trials * (len(chosen) + (len(chosen) > 1))
        with meter(progress, "dropout_stability", total) as steps:
            for width in chosen:
                moments = Moments(work, work, width) if refit else None
                losses = []
                for kept in sets[width.name]:
                    _drop(work.model, width, kept, moments)
                    losses.append(work.mean_loss())
                    work.load()
                    steps.advance(width.name, losses[-1] - base)
                rows.append(_row(width.name, width.kind, width.units, len(sets[width.name][0]), losses, base))
            together = _together(work, chosen, sets, base, rows, Bench(model, loss, samples) if refit else None, steps)
    return DropoutReport(base, float(keep), refit, trials, rows, together, skipped)


def _check(keep: Any, trials: Any, seed: Any, layers: Any) -> None:
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
        raise ValueError(f"keep: expected a share in (0, 1], got {keep!r}")
    for name, value, least in (("trials", trials, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}")
    if isinstance(layers, str):
        raise ValueError(f"layers: expected a sequence of names, got the string {layers!r}")


def _choose(
    model: nn.Module, widths: Widths, layers: Sequence[str] | None, refit: bool
) -> tuple[list[Width], dict[str, str]]:
    """The widths to treat, and why the others stay."""
    reasons = {width.name: why for width in widths if (why := untreated(width, refit=refit))}
    if layers is not None:
        for name in layers:
            width = widths.named(name)
            if width.name in reasons:
                raise ValueError(f"layers: {name} cannot be treated: {reasons[name]}")
        asked = set(layers)
        if not asked:
            raise ValueError("layers: expected at least one name, got none")
        return [width for width in widths if width.name in asked], {}
    chosen = [width for width in widths if width.name not in reasons]
    skipped = {**reasons, **widths.refused}
    if not chosen:
        why = "; ".join(grouped(skipped)) or "no linear map reads units that another one makes"
        raise UnsupportedModelError(f"{type(model).__name__}: no layer has units that can be dropped: {why}")
    return chosen, skipped


def _sets(width: Width, keep: float, trials: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {width.name}".encode()))
    return [choose_units(width, keep, generator) for _ in range(trials)]


def _drop(model: nn.Module, width: Width, kept: Tensor, moments: Moments | None) -> None:
    if len(kept) == width.units:
        return
    if moments is None:
        rescale(model, width, kept)
    else:
        moments.refit(model, kept)


def _row(name: str, kind: str, units: int, kept: int, losses: Sequence[float], base: float) -> LayerDropout:
    return LayerDropout(name, kind, units, kept, tuple(losses), tuple(loss - base for loss in losses))


def _together(
    work: Bench,
    widths: Sequence[Width],
    sets: dict[str, list[Tensor]],
    base: float,
    rows: Sequence[LayerDropout],
    dense: Bench | None,
    steps: Meter,
) -> LayerDropout:
    """All widths at once; ``dense`` for a refit towards what their readers gave in the whole network."""
    smallest = min(rows, key=lambda row: row.units)
    if len(rows) == 1:
        return _row("all at once", smallest.kind, smallest.units, smallest.kept, rows[0].losses, base)
    losses = []
    for trial in range(len(rows[0].losses)):
        for width in widths:
            kept = sets[width.name][trial]
            _drop(work.model, width, kept, None if dense is None else Moments(dense, work, width))
        losses.append(work.mean_loss())
        work.load()
        steps.advance("all at once", losses[-1] - base)
    kinds = {row.kind for row in rows}
    return _row("all at once", kinds.pop() if len(kinds) == 1 else "", smallest.units, smallest.kept, losses, base)
