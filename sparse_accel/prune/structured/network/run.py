"""One run of ISpaSP: the widths of a network one after the other, and what is left in the end."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor, nn

from sparse_accel.calibration.batches import Batches
from sparse_accel.calibration.data import Calibration
from sparse_accel.calibration.padding import Padding
from sparse_accel.calibration.replay.engine import Engine
from sparse_accel.channels.graph import UnsupportedModelError, tensors_of
from sparse_accel.channels.width_search import widths_of
from sparse_accel.channels.widths import grouped
from sparse_accel.progress import meter
from sparse_accel.prune.structured.head import find_head, linear_maps, refit_classifier, wants_refit
from sparse_accel.prune.structured.kinds.norms import prunable
from sparse_accel.prune.structured.network.record import Record
from sparse_accel.prune.structured.network.sizes import agreed, keeps
from sparse_accel.prune.structured.report import StructuredResult, WidthChange, finished, left_stacks, refine_result
from sparse_accel.prune.structured.request import PruneError, check_unvisited, look
from sparse_accel.prune.structured.sites import find_sites
from sparse_accel.prune.structured.stage import largest_state, prune_width, watched
from sparse_accel.prune.structured.tune import fine_tune_small
from sparse_accel.removal.compact import copy_model
from sparse_accel.removal.remove import RemovalResult, followed, remove_known, remove_units
from sparse_accel.removal.verify import OutputMismatchError


def prune_network(pruner: Any, calibration: Any, batch_size: int | None) -> StructuredResult:
    """Prune; see :meth:`ISpaSP.run`.

    Args:
        pruner: the :class:`~sparse_accel.prune.ISpaSP`.
        calibration: the data.
        batch_size: that a tensor is split into; None: as Calibration chooses.
    """
    start = time.perf_counter()
    data = Batches(Calibration(calibration, batch_size), pruner.model, Padding(pruner.mask, pruner.batch_first, "mask"))
    dense = pruner.model
    work = copy_model(dense).eval()
    blind = not pruner.settings.measures and pruner.budget is None
    graph, examples = followed(work, pruner.example_inputs)
    found = widths_of(graph, work)
    # Kept for the removal where it is a large part of the time. Else the heap has more use for its room: behind the
    # graph's small objects there is that of the copy that was run.
    analysis = (graph, found, examples) if blind and pruner.fine_tune is None else None
    del graph, examples
    layout = _layout(work)
    if not found:
        reasons = "; ".join([*grouped(found.refused), *left_stacks(work)]) or "no linear map reads another"
        raise UnsupportedModelError(f"nothing can be pruned: {reasons}")
    notes = grouped(found.refused)
    widths = pruner.request.chosen(list(found), notes)
    consumers: dict[str, str | None] = dict.fromkeys(linear_maps(work))
    consumers |= {module: norm for width in widths for module, norm in width.watched().items()}
    sites = find_sites(work, pruner.example_inputs, consumers)
    findings = look(work, data, pruner.example_inputs, sites, values=not blind)
    widths = prunable(findings.safe(widths, notes), work, pruner.example_inputs, notes)
    if pruner.request.uniform:
        widths = agreed(pruner.request, found, widths, work, pruner.example_inputs, notes)
    notes += [f"{name}: batches call it, example_inputs do not: analysed without it" for name in findings.unvisited]
    nbytes = largest_state(widths, work, sites, pruner.settings, pruner.max_memory)
    head = find_head(sites) if wants_refit(pruner.refit_head, pruner.settings, widths, work) else None
    kept: dict[str, Tensor] = {}
    gone: dict[str, Tensor] = {}
    changes: list[WidthChange] = []
    with (
        meter(pruner.progress, "ISpaSP", len(widths) + (head is not None)) as done,
        Engine(dense, work, data, findings.order, pruner.activation_memory) as engine,
    ):
        record = Record(pruner, work, widths, data)
        counts = record.counts(widths)
        if counts is None:
            counts = keeps(pruner.request, pruner.budget, widths, engine, pruner.example_inputs, sites, pruner.settings)
            record.put_counts(counts)
        steps = [*map(watched, widths), [] if head is None else [head]]
        engine.plan(steps)
        for number, width in enumerate(widths):
            if counts[width.name] == width.units and not kept:
                done.advance(width.name)
                continue
            engine.advance(steps[number:])
            changed, count = bool(kept), counts[width.name]
            done_before = record.get(number, width, count, sites, gone)
            if done_before is not None:
                units, change = done_before
            else:
                try:
                    units, change = prune_width(width, count, engine, sites, pruner.settings, gone, changed=changed)
                except (ValueError, RuntimeError) as error:
                    raise PruneError(f"{width.name}: {error}") from error
                record.put(number, width, units, change, sites)
            kept[width.name] = units
            changes.append(change)
            notes += [change.note] if change.note else []
            done.advance(width.name, change.error and change.error[1])
            if pruner.fine_tune is not None:
                fine_tune_small(pruner.fine_tune, width.name, work, pruner.example_inputs, kept, pruner.tolerance)
                work.eval()
                engine.work.give_up("fine_tune changes all of it")
        if head is not None and kept and not sites[head].routed:
            engine.advance([[head]])
            errors = record.head(head)
            if errors is None:
                errors = refit_classifier(head, engine, sites[head], pruner.settings, gone.get(head))
                record.put_head(head, *errors)
            before, after = errors
            notes.append(f"{head}: refit, error {before:.4f} → {after:.4f}")
            done.advance(head, after)
        notes += engine.notes()

    def result(removed: RemovalResult) -> StructuredResult:
        more: dict[str, Any] = {"nbytes": nbytes, "start": start, "measure": pruner.measure}
        return finished(removed, dense, work, pruner.example_inputs, kept, changes, notes, **more)

    try:
        if analysis is not None and _layout(work) == layout:  # no layer has got a bias since
            removed = remove_known(work, analysis, kept, tolerance=pruner.tolerance)
        else:
            removed = remove_units(work, pruner.example_inputs, kept, tolerance=pruner.tolerance)
    except OutputMismatchError as error:
        error.result = result(error.result)
        raise
    if findings.unvisited and kept:
        try:
            check_unvisited(removed.model, work, data, findings.unvisited)
        except UnsupportedModelError as error:
            error.result = result(removed)
            raise
    out = result(removed)
    if pruner.refine is not None and kept:
        refine_result(out, dense, data, pruner.refine.shown_by(pruner.progress), pruner.max_memory)
    return out


def _layout(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Which tensors a model has, of which shapes."""
    return {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}
