"""One budget for the whole model, spent where a unit less hurts the least for what it saves."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_accel.calibration.data import all_reduce_, eval_mode
from sparse_accel.calibration.replay.engine import Engine
from sparse_accel.calibration.replay.front import check_values, replayed
from sparse_accel.channels.call import run_model, tree_tensors
from sparse_accel.channels.containers import output_tensors
from sparse_accel.channels.widths import ExpertWidth, Width
from sparse_accel.prune.select.gram import gram_obs
from sparse_accel.prune.structured.choose import joint_problem, unit_sets
from sparse_accel.prune.structured.cost import Cost, CountedCost, LatencyCost, UnitCost
from sparse_accel.prune.structured.feed import Feed
from sparse_accel.prune.structured.kinds.experts import Readers, UnclearUseError, rewrite
from sparse_accel.prune.structured.layer import Layer, Settings
from sparse_accel.prune.structured.sites import Site
from sparse_accel.prune.structured.stage import collect, watched

logger = logging.getLogger("sparse_accel")

PROBE_SAMPLES = 256
STEPS = 64


def allocate(
    budget: Mapping[str, float],
    widths: Sequence[Width],
    fixed: Mapping[str, int],
    steps: Mapping[str, int],
    engine: Engine,
    example_inputs: Any,
    sites: Mapping[str, Site],
    settings: Settings,
    alike: Sequence[Sequence[str]] = (),
) -> dict[str, int]:
    """Units to keep of each width.

    The damage of removing units from a width is the least-squares error that Gram-OBS reports along its whole order,
    scaled by what halving this width alone does to the model's outputs. Units then go one small step after the other
    from where damage per cost is least, along the lower convex hull of each curve, until the model fits.

    Args:
        budget: ``{"flops": share}``, ``{"params": share}``, ``{"units": share}`` or ``{"latency_ms": milliseconds}``.
        widths: of which units may go.
        fixed: units of widths whose number is given.
        steps: of which each other width keeps a multiple, or all.
        engine: the model, in eval mode, as it was, and the data.
        example_inputs: on which the cost is taken.
        sites: of all consumers.
        settings: see there.
        alike: names of widths of one size that keep equally many units, of the same multiple.

    Raises:
        ValueError: not even one unit per width fits the budget.
    """
    kind, wanted = next(iter(budget.items()))
    work = engine.work.model
    cost: Cost
    if kind == "units":
        cost = UnitCost(widths)
    elif kind == "latency_ms":
        cost = LatencyCost(work, example_inputs, widths)
    else:
        cost = CountedCost(kind, work, example_inputs, widths)
    limit = wanted if kind == "latency_ms" else wanted * cost.total
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    free = [width for width in widths if width.name not in fixed]
    with Engine(work, work, engine.batches, engine.order, engine.store.limit) as own:  # nothing changes: one stream
        own.plan([watched(width) for width in free])
        dense = _outputs(own) if free else []
        for number, width in enumerate(free):
            own.advance([watched(later) for later in free[number:]])
            curves[width.name] = _curve(width, steps[width.name], own, sites, settings, dense)
    together = _joined(curves, alike)
    every = {width.name: fixed.get(width.name, width.units) for width in widths}
    target = limit
    for _ in range(6):  # the estimate of the cost is corrected by what it turns out to be
        kept = spend(curves, cost, every, target, together)
        came = cost.measure(kept)
        logger.info("budget: %s: %.4g of %.4g, wanted %.4g", kind, came, cost.total, limit)
        if came <= limit:
            return kept
        if all(kept[name] == points[-1] for name, (points, _) in curves.items()):
            break
        target -= 1.05 * (came - limit)
    least = came / cost.total if kind != "latency_ms" else came
    raise ValueError(f"budget: {kind}: expected at least {least:.3g}, what the widths can save, got {wanted:.3g}")


def _joined(
    curves: dict[str, tuple[np.ndarray, np.ndarray]], alike: Sequence[Sequence[str]]
) -> dict[str, Sequence[str]]:
    """Put one curve, the sum, in the place of those of widths that go together; all names by the one that has it."""
    together: dict[str, Sequence[str]] = {name: [name] for name in curves}
    for names in alike:
        own = [curves.pop(name) for name in names if name in curves]
        if not own:
            continue
        lead = names[0]
        points = own[0][0] if all(np.array_equal(one[0], own[0][0]) for one in own) else own[0][0][:1]
        curves[lead] = points, np.sum([damage[: len(points)] for _, damage in own], axis=0)
        together[lead] = names
    return together


def spend(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    cost: Cost,
    every: Mapping[str, int],
    limit: float,
    together: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, int]:
    """Units to keep so that the estimated cost is at most ``limit``, or the least possible.

    Args:
        curves: of each width the numbers of units that may be kept, falling, and the damage at each.
        cost: estimates.
        every: units of each width to start from.
        limit: on the cost.
        together: names of the widths that a curve is of, by its own; itself alone without.
    """
    together = {name: [name] for name in curves} if together is None else together
    kept = dict(every)
    position = dict.fromkeys(curves, 0)
    start = {name: cost.savings([name], np.array([count]), _whole(cost, name, every)) for name, count in every.items()}
    left = cost.total - float(sum(saved.sum() for saved in start.values()))
    while left > limit:
        best: tuple[float, str, int, float] | None = None
        for name, (points, damage) in curves.items():
            at = position[name]
            if at + 1 >= len(points):
                continue
            saved = cost.savings(together[name], points[at + 1 :], kept)
            with np.errstate(divide="ignore", invalid="ignore"):
                rates = np.where(saved > 0, np.maximum(damage[at + 1 :] - damage[at], 0) / saved, np.inf)
            ahead = int(rates.argmin())
            if np.isfinite(rates[ahead]) and (best is None or rates[ahead] < best[0]):
                best = (float(rates[ahead]), name, at + 1 + ahead, float(saved[ahead]))
        if best is None:
            break
        _, name, at, saved_there = best
        if left - saved_there < limit:  # do not jump past the limit along the hull
            points = curves[name][0]
            steps = cost.savings(together[name], points[position[name] + 1 : at + 1], kept)
            enough = int(np.argmax(left - steps <= limit))
            at, saved_there = position[name] + 1 + enough, float(steps[enough])
        position[name] = at
        kept |= dict.fromkeys(together[name], int(curves[name][0][at]))
        left -= saved_there
    return kept


def _whole(cost: Cost, name: str, every: Mapping[str, int]) -> dict[str, int]:
    """The state before a given width's number was fixed: itself whole, those before it as they are."""
    widths: Mapping[str, Width] = cost.widths  # type: ignore[attr-defined]
    names = list(every)
    before = names[: names.index(name)]
    return {other: every[other] if other in before else widths[other].units for other in names}


def _curve(
    width: Width,
    multiple: int,
    engine: Engine,
    sites: Mapping[str, Site],
    settings: Settings,
    dense: Sequence[Tensor],
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of units, falling, and the damage at each; ``dense`` has the model's outputs."""
    work = engine.work.model
    if isinstance(width, ExpertWidth):
        return _expert_curve(width, multiple, engine, sites, dense, settings)
    layers = [
        Layer(
            work,
            consumer,
            sites[consumer.module],
            "local",
            new_bias=settings.may_create_bias(work, consumer.module),
        )
        for consumer in width.consumers
    ]
    collect(Feed(engine, layers, cache_bytes=0), layers)
    sets = unit_sets(width)
    number = 1 if sets is None else int(sets.max()) + 1
    gram, cross, weight, block, ridge = joint_problem(layers, settings.ridge)
    chosen = gram_obs(gram, cross, weight, block=block, keep=number, ridge=ridge, balance=sets)
    total = np.concatenate([[0.0], chosen.damages.clamp(min=0).cumsum(0).cpu().numpy()])
    points = _points(width.units, multiple)
    half = int(points[len(points) // 2])
    kept = chosen.at(half)
    effect = _effect(layers, kept, engine, settings, dense)
    return _scaled(width, points, total, half, effect)


def _points(units: int, multiple: int) -> np.ndarray:
    """The numbers of units to choose from, falling: all, and multiples."""
    step = max(1, units // multiple // STEPS) * multiple
    grid = np.arange(units // multiple * multiple, 0, -step)
    return np.unique([*grid, units, min(multiple, units)])[::-1]


def _scaled(
    width: Width, points: np.ndarray, total: np.ndarray, half: int, effect: float
) -> tuple[np.ndarray, np.ndarray]:
    """The points with damages such that the one at ``half`` is its effect on the outputs; total: by units removed."""
    scale = effect / total[width.units - half] if total[width.units - half] > 0 else 1.0
    logger.info("budget: %s: error of the outputs with %d of %d units: %.4g", width.name, half, width.units, effect)
    return points, scale * total[width.units - points]


def _expert_curve(
    width: ExpertWidth,
    multiple: int,
    engine: Engine,
    sites: Mapping[str, Site],
    dense: Sequence[Tensor],
    settings: Settings,
) -> tuple[np.ndarray, np.ndarray]:
    """The same of stacked experts: their damages added up."""
    readers = Readers(engine.work.model, width)
    try:
        readers.collect(engine, sites[width.stack.module])
    except UnclearUseError as unclear:
        logger.warning("budget: %s stays whole: %s", width.name, unclear)
        return np.array([width.units]), np.zeros(1)
    idle, points = readers.idle(), _points(width.units, multiple)
    half = int(points[len(points) // 2])
    total = np.zeros(width.units)
    kept = torch.arange(half, device="cpu").repeat(width.stack.experts, 1)
    for expert in (number for number in range(width.stack.experts) if number not in idle):
        chosen = readers.solved(gram_obs, expert, 1, settings.ridge)
        total += np.concatenate([[0.0], chosen.damages.clamp(min=0).cumsum(0).cpu().numpy()])
        kept[expert] = chosen.at(half).cpu()
    tensors = [readers.parameter, *([] if readers.bias is None else [readers.bias])]
    saved = [tensor.detach().clone() for tensor in tensors]
    try:
        rewrite(readers, kept, idle, settings, moments=True)
        came = _outputs(engine)
    finally:
        with torch.no_grad():
            for tensor, old in zip(tensors, saved, strict=True):
                tensor.copy_(old)
        torch.clear_autocast_cache()
    return _scaled(width, points, total, half, _difference(came, dense))


def _effect(
    layers: Sequence[Layer], kept: Tensor, engine: Engine, settings: Settings, dense: Sequence[Tensor]
) -> float:
    """Relative squared error of the model's outputs when this width alone is pruned and refit."""
    saved = [{name: tensor.detach().clone() for name, tensor in _tensors(layer)} for layer in layers]
    biases = [layer.module._parameters.get("bias") for layer in layers]
    try:
        for layer in layers:
            weight = layer.fit(kept, settings.ridge)
            layer.write(weight, layer.intercept(weight))
        came = _outputs(engine)
    finally:
        with torch.no_grad():
            for layer, tensors, bias in zip(layers, saved, biases, strict=True):
                layer.module._parameters["bias"] = bias
                for name, tensor in _tensors(layer):
                    tensor.copy_(tensors[name])
        torch.clear_autocast_cache()
    return _difference(came, dense)


def _difference(came: Sequence[Tensor], dense: Sequence[Tensor]) -> float:
    """Squared error of outputs relative to their variation, over all ranks."""
    sums = torch.zeros(2, dtype=torch.float64, device="cpu")
    for new, old in zip(came, dense, strict=True):
        spread = (old - old.mean(0)).square().sum() if old.shape[0] > 1 else old.square().sum()
        sums += torch.stack([(new - old).square().sum(), spread]).cpu()
    sums = sums.to(dense[0].device) if dense else sums
    all_reduce_([sums])
    return float(sums[0] / sums[1]) if float(sums[1]) > 0 else 0.0


def _tensors(layer: Layer) -> list[tuple[str, Tensor]]:
    modules = [("", layer.module)] + ([] if layer.norm is None else [("norm.", layer.norm)])
    return [
        (prefix + name, tensor)
        for prefix, module in modules
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    ]


def _outputs(engine: Engine) -> list[Tensor]:
    """Floating-point outputs on the first samples, batch by batch, float64, each as ``[samples, rest]``."""
    out: list[Tensor] = []
    model = engine.work.model
    device = next((tensor.device for tensor in tree_tensors(list(model.parameters()))), None)

    def run() -> None:
        samples = 0
        with torch.no_grad(), eval_mode(model):
            for batch in engine.batches.batches(device):
                results = [tensor for tensor in output_tensors(run_model(model, batch)) if tensor.is_floating_point()]
                check_values(results)
                out.extend(tensor.double().reshape(tensor.shape[0], -1) for tensor in results if tensor.dim())
                samples += next((len(tensor) for tensor in tree_tensors(batch) if tensor.dim()), 1)
                if samples >= PROBE_SAMPLES:
                    break

    replayed([engine.work], engine.batches, run, out.clear)
    return out
