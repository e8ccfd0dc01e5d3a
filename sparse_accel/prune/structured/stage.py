"""One width: statistics, selection, refit, and its consumers rewritten in place."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparse_accel._heap import LARGEST, give_back
from sparse_accel.calibration.columns import column_count, unit_columns, weight_matrix, weight_of
from sparse_accel.calibration.data import require_memory
from sparse_accel.calibration.replay.engine import Engine
from sparse_accel.channels.widths import ExpertWidth, Width
from sparse_accel.prune.structured.choose import choose, choose_blindly, unit_sets
from sparse_accel.prune.structured.feed import Feed, Solutions, UnpairedError, relu_aware
from sparse_accel.prune.structured.kinds.experts import Readers, prune_experts
from sparse_accel.prune.structured.kinds.norms import settle_norms
from sparse_accel.prune.structured.layer import Layer, Piece, Settings
from sparse_accel.prune.structured.report import WidthChange
from sparse_accel.prune.structured.sites import Site
from sparse_accel.prune.structured.sums import ispasp_choose
from sparse_accel.removal.compact import copy_model

logger = logging.getLogger("sparse_accel")


def collect(feed: Feed, layers: Sequence[Layer]) -> None:
    """One pass that fills the layers' moments."""

    def start() -> None:
        for layer in layers:
            layer.start()

    def visit(layer: Layer, piece: Piece) -> None:
        layer.add(*piece)

    start()
    feed.run(visit, start)
    if sum(layer.nbytes for layer in layers) > LARGEST:  # selection takes several times as much
        give_back()
    for layer in layers:
        layer.finish()


def watched(width: Width) -> list[str]:
    """Names of the modules that pruning a width watches and changes."""
    names = [name for pair in width.watched().items() for name in pair if name is not None]
    if width.norms:  # what makes the units changes, too
        owners = (norm.weight.rpartition(".")[0] for norm in width.norms)
        names += [*width.producers, *(norm.module for norm in width.norms), *owners]
    return list(dict.fromkeys(names))


def make_layers(
    width: Width, work: nn.Module, sites: Mapping[str, Site], settings: Settings, gone: Mapping[str, Tensor]
) -> list[Layer]:
    """The consumers of a width; ``gone`` has the columns that they have lost by now, by consumer."""
    return [
        Layer(
            work,
            consumer,
            sites[consumer.module],
            settings.target(sites[consumer.module], work.get_submodule(consumer.module)),
            new_bias=settings.may_create_bias(work, consumer.module),
            gone=gone.get(consumer.module),
        )
        for consumer in width.consumers
    ]


def state_bytes(width: Width, work: nn.Module, sites: Mapping[str, Site], settings: Settings) -> int:
    """Bytes of a stage: its sums, and what choosing and refitting hold besides.

    Over the columns of all consumers that is the inverse, the two matrices that elimination changes and their smaller
    copies, and one more where columns have to be put together; and five matrices of their rows.
    """
    if isinstance(width, ExpertWidth):
        return Readers(work, width).nbytes
    if not settings.measures:
        return 0
    layers = make_layers(width, work, sites, settings, {})
    columns = sum(layer.groups * layer.features for layer in layers)
    rows = sum(layer.outputs for layer in layers)
    matrices = 5 if len(layers) == 1 and layers[0].groups == 1 and not len(layers[0].fixed) else 7
    return sum(layer.nbytes for layer in layers) + 8 * columns * (matrices * columns + 5 * rows)


def largest_state(
    widths: Sequence[Width], work: nn.Module, sites: Mapping[str, Site], settings: Settings, max_memory: int | None
) -> int:
    """Bytes of the largest stage.

    Raises:
        ValueError: past ``max_memory``.
    """
    needed = {width.name: state_bytes(width, work, sites, settings) for width in widths}
    if not needed:
        return 0
    largest = max(needed, key=lambda name: needed[name])
    require_memory(needed[largest], max_memory, f"the statistics of {largest}, the largest width")
    return needed[largest]


def prune_width(
    width: Width,
    keep: int,
    engine: Engine,
    sites: Mapping[str, Site],
    settings: Settings,
    gone: dict[str, Tensor],
    *,
    changed: bool,
) -> tuple[Tensor, WidthChange]:
    """Choose the units of a width, zero what reads the others, and refit.

    Args:
        width: in the model that is being pruned.
        keep: number of units to keep.
        engine: the dense model, the one that is being pruned (in eval mode; its consumers of the width are rewritten),
            and the data.
        sites: of all consumers.
        settings: see there.
        gone: columns that the consumers have lost by now, by consumer; what goes is added.
        changed: whether the model that is being pruned computes anything else than the dense one by now.

    Returns:
        The units kept, ascending (of stacked experts ``[experts, keep]``), and what to report.
    """
    if isinstance(width, ExpertWidth):
        return prune_experts(width, keep, engine, sites, settings)
    if not settings.measures and not width.norms and keep < width.units:
        return _cut_width(width, keep, engine.work.model, settings, gone)
    start = time.perf_counter()
    work = engine.work.model
    moments = settings.refit is not None or settings.method not in ("magnitude", "random", "ispasp")
    while True:
        layers = make_layers(width, work, sites, settings, gone)
        relu = [layer for layer in layers if layer.site.relu and layer.target in ("dense", "skip")]
        relu = relu if settings.relu_iterations and settings.refit is not None else []
        feed = Feed(engine, layers, cache_bytes=settings.cache_bytes if relu else 0)
        try:
            if moments:
                collect(feed, layers)
            break
        except UnpairedError as unpaired:
            logger.warning("%s: refit towards the pruned model's own inputs", unpaired)
            for name in unpaired.names:
                sites[name].routed = True
    if keep == width.units:
        kept = torch.arange(width.units, device=layers[0].columns.device)
    elif settings.method == "ispasp":
        kept = ispasp_choose(width, keep, engine, layers, settings)
    else:
        generator = torch.Generator().manual_seed(settings.seed + width.order)
        kept = choose(
            settings.method,
            layers,
            [_by_unit(work, name, rows) for name, rows in width.rows.items()],
            keep,
            ridge=settings.ridge,
            sets=unit_sets(width),
            generator=generator,
        )
    targets, note = {layer.name: layer.target for layer in layers}, ""
    if width.norms and keep < width.units:
        local = "local" in targets.values()
        before = engine.against(copy_model(work)) if local and moments else engine
        note = settle_norms(width, kept, engine)
        layers = make_layers(width, work, sites, settings, gone)
        for layer in layers:  # the units are other ones by now: what the consumers made of the old ones is the target
            layer.target = "dense" if layer.target == "local" else layer.target
        relu = [layer for layer in layers if layer.name in {other.name for other in relu}]
        feed = Feed(before, layers, cache_bytes=settings.cache_bytes if relu else 0)
        if moments:
            collect(feed, layers)
    errors = []
    at = [0 if settings.refit is None else consumer.stage for consumer in width.consumers]
    for stage in sorted(set(at)):
        own = [layer for layer, number in zip(layers, at, strict=True) if number == stage]
        again = [layer for layer in relu if layer in own]
        if stage > min(at):  # behind a gate whose own readers have just been refit
            feed = Feed(engine, own, cache_bytes=settings.cache_bytes if again else 0)
            collect(feed, own)
        errors += _refit(feed, own, again, kept, settings, moments=moments, changed=changed)
    error = (sum(e[0] for e in errors) / len(errors), sum(e[1] for e in errors) / len(errors)) if errors else None
    for layer in layers:
        lost = layer.removed_columns(kept)
        gone[layer.name] = torch.cat([gone[layer.name], lost]) if layer.name in gone else lost
    shown = sorted({targets[layer.name] + ("+relu" if layer in relu else "") for layer in layers})
    change = WidthChange(
        name=width.name,
        kind=width.kind,
        units=(width.units, len(kept)),
        consumers=tuple(layer.name for layer in layers),
        target="" if settings.refit is None else "bias" if settings.refit == "bias" else ", ".join(shown),
        error=error,
        seconds=time.perf_counter() - start,
        note=note,
    )
    logger.info("%s: %d of %d units kept, %.1f s", width.name, len(kept), width.units, change.seconds)
    return kept, change


def _cut_width(
    width: Width, keep: int, work: nn.Module, settings: Settings, gone: dict[str, Tensor]
) -> tuple[Tensor, WidthChange]:
    """:func:`prune_width` where nothing but the weights decides, and nothing but zeros is written."""
    start = time.perf_counter()
    weights = [_by_unit(work, name, rows) for name, rows in width.rows.items()]
    generator = torch.Generator().manual_seed(settings.seed + width.order)
    kept = choose_blindly(settings.method, weights, width.units, keep, sets=unit_sets(width), generator=generator)
    for consumer in width.consumers:
        module = work.get_submodule(consumer.module)
        weight = module.get_parameter("weight")
        kept = kept.to(weight.device)
        rest = torch.ones(width.units, dtype=torch.bool, device=weight.device)
        rest[kept] = False
        _, features = column_count(module)
        lost = unit_columns(module, consumer.channels.to(weight.device))[rest].flatten()
        with torch.no_grad():
            matrix = weight_matrix(module, weight).clone()
            for group, own in enumerate(matrix):
                inside = lost[(lost >= group * features) & (lost < (group + 1) * features)]
                own[:, inside - group * features] = 0
            weight.copy_(weight_of(module, matrix))
        name = consumer.module
        gone[name] = torch.cat([gone[name], lost]) if name in gone else lost
    torch.clear_autocast_cache()
    names, seconds = tuple(consumer.module for consumer in width.consumers), time.perf_counter() - start
    logger.info("%s: %d of %d units kept, %.1f s", width.name, len(kept), width.units, seconds)
    return kept, WidthChange(width.name, width.kind, (width.units, len(kept)), names, "", None, seconds)


def _refit(
    feed: Feed,
    layers: Sequence[Layer],
    relu: Sequence[Layer],
    kept: Tensor,
    settings: Settings,
    *,
    moments: bool,
    changed: bool,
) -> list[tuple[float, float]]:
    """Rewrite the consumers; the error of each before and after, nothing without moments."""
    if not moments:
        for layer in layers:
            layer.cut(kept)
        return []
    before = [layer.error(layer.masked(kept), layer.shift) for layer in layers]
    solutions: Solutions = {}
    for layer in layers:
        weight = layer.masked(kept)
        if settings.refit is None:
            layer.cut(kept)
            solutions[layer.name] = weight, layer.shift
        elif settings.refit == "bias":
            shift = layer.intercept(weight)
            layer.cut(kept, shift if layer.has_bias else None)
            solutions[layer.name] = weight, shift
        elif len(kept) < len(layer.columns) or (changed and layer.target != "local"):
            weight = layer.fit(kept, settings.ridge)
            solutions[layer.name] = weight, layer.intercept(weight)
        else:
            relu = [other for other in relu if other is not layer]
    relu_aware(
        feed,
        relu,
        kept,
        solutions,
        ridge=settings.ridge,
        iterations=settings.relu_iterations if relu else 0,
    )
    if settings.refit not in (None, "bias"):
        for layer in layers:
            if layer.name in solutions:
                layer.write(*solutions[layer.name])
    after = [layer.error(*solutions.get(layer.name, (layer.weight, layer.shift))) for layer in layers]
    return list(zip(before, after, strict=True))


def _by_unit(model: nn.Module, name: str, rows: Tensor) -> Tensor:
    """What of a producer's weight makes each unit, ``[units, ...]``."""
    weight = model.get_parameter(name).detach()
    module = model.get_submodule(name.rpartition(".")[0])
    matrix = weight.T if isinstance(module, nn.Embedding) else weight_matrix(module, weight).flatten(0, 1)
    return matrix[rows.to(weight.device)]
