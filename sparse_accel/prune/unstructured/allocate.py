"""How much of the total sparsity each layer takes: equal marginal errors."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Mapping, Sequence

from sparse_accel.calibration.batches import Batches
from sparse_accel.calibration.ranks import together
from sparse_accel.calibration.replay.front import Front
from sparse_accel.prune.unstructured.layers import Step
from sparse_accel.prune.unstructured.solve import SolverOptions, hessian_of, kept_count, solve_layer
from sparse_accel.prune.unstructured.steps import modules_of

POINTS = (0.5, 0.8, 1.0)  # of the asked sparsity, at which errors are measured,
BEYOND = (0.25, 0.5, 0.75)  # and of the way from there to 1
ITERATIONS = 8  # of the solver: the shape of the curve counts, not its last percent
PIECES = 256  # into which a curve is cut

Curve = list[tuple[float, float]]  # (sparsity, relative output error), both ascending, from (0, 0) to (1, 1)


def allocate(steps: Sequence[Step], front: Front, batches: Batches, options: SolverOptions) -> dict[str, float]:
    """The sparsity of every layer for which the sum of relative output errors is least at the asked total.

    Errors are measured on the dense model's inputs, at a few sparsities of each layer.

    Args:
        steps: their layers' targets are plain numbers; the total is that of all of them.
        front: of the dense model.
        batches: the data.
        options: of the solver.

    Raises:
        ValueError: a target is not a number in [0, 1].
    """
    layers = [layer for step in steps for layer in step.layers]
    for layer in layers:
        if isinstance(layer.target, bool) or not isinstance(layer.target, (int, float)):
            raise ValueError(
                f"allocation: 'global' needs a number as the sparsity of {layer.where}, got {layer.target!r}"
            )
        if not 0 <= layer.target <= 1:
            raise ValueError(f"sparsity: expected a number in [0, 1] for {layer.where}, got {layer.target}")
    sizes = {layer.name: layer.weight.numel() for layer in layers}
    targets = {layer.name: float(layer.target) for layer in layers}
    total = sum(sizes.values())
    if len(set(targets.values())) == 1:
        removed = total - kept_count(layers[0].target, total)
    else:
        removed = sum(sizes[name] - kept_count(targets[name], sizes[name]) for name in sizes)
    quick = dataclasses.replace(options, iterations=min(options.iterations, ITERATIONS))
    curves: dict[str, Curve] = {}
    pruned = modules_of(layers)
    for number, step in enumerate(steps):
        device = step.layers[0].weight.device
        with together(device):
            gram = hessian_of(front, batches, step, options.dtype)
        gram.all_reduce_()
        hessian = gram.hessian
        for layer in step.layers if gram.count else ():  # others stay as they are
            points = sorted(
                {r * removed / total for r in POINTS} | {1 - (1 - removed / total) * (1 - r) for r in BEYOND}
            )
            inner = [(s, solve_layer(layer, hessian, s, quick).error) for s in points if 0 < s < 1]
            curves[layer.name] = [(0.0, 0.0), *inner, (1.0, 1.0)]
        rest = [layer for later in steps[number + 1 :] for layer in later.layers]
        front.advance(pruned - modules_of(rest), pruned)
    if len(curves) < len(sizes):
        sizes = {name: sizes[name] for name in curves}
        removed = round(removed / total * sum(sizes.values()))
    counts = share_out(curves, sizes, removed)
    return targets | {name: counts[name] / sizes[name] for name in sizes}


def share_out(curves: Mapping[str, Curve], sizes: Mapping[str, int], removed: int) -> dict[str, int]:
    """Removed weights per layer, ``removed`` in all, at the least sum of errors on the curves' convex hulls.

    Example:
        >>> flat, steep = [(0.0, 0.0), (0.5, 0.01), (1.0, 1.0)], [(0.0, 0.0), (0.5, 0.1), (1.0, 1.0)]
        >>> counts = share_out({"a": flat, "b": steep}, {"a": 100, "b": 100}, 101)
        >>> counts["a"] > counts["b"], counts["a"] + counts["b"]
        (True, 101)
    """
    hulls = {name: _hull(_resample(curve, sizes[name])) for name, curve in curves.items()}
    counts = dict.fromkeys(sizes, 0)
    queue = [(_slope(hull, 0), number, name, 0) for number, (name, hull) in enumerate(hulls.items()) if len(hull) > 1]
    heapq.heapify(queue)
    left = removed
    while left > 0 and queue:
        _, number, name, piece = heapq.heappop(queue)
        hull = hulls[name]
        taken = min(left, hull[piece + 1][0] - hull[piece][0])
        counts[name] += taken
        left -= taken
        if piece + 2 < len(hull):
            heapq.heappush(queue, (_slope(hull, piece + 1), number, name, piece + 1))
    return counts


def _resample(curve: Curve, size: int) -> list[tuple[int, float]]:
    """The curve at whole counts of removed weights; between its points a power of the sparsity."""
    points = [(s, max(e, 1e-12)) for s, e in curve if s > 0]
    for i in range(1, len(points)):  # an error never falls with the sparsity
        points[i] = (points[i][0], max(points[i][1], points[i - 1][1]))
    out = {0: 0.0}
    for piece in range(1, PIECES + 1):
        count = round(size * piece / PIECES)
        share = count / size
        if count in out:
            continue
        upper = next(i for i, (s, _) in enumerate(points) if s >= share - 1e-12)
        s1, e1 = points[upper]
        if upper == 0:
            out[count] = e1 * (share / s1) ** 2
            continue
        s0, e0 = points[upper - 1]
        slope = math.log(e1 / e0) / math.log(s1 / s0)
        out[count] = e0 * (share / s0) ** slope
    return sorted(out.items())


def _hull(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The lower convex hull."""
    hull: list[tuple[int, float]] = []
    for x, y in points:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (x - x1) < (y - y1) * (x1 - x0):
                break
            hull.pop()
        hull.append((x, y))
    return hull


def _slope(hull: list[tuple[int, float]], piece: int) -> float:
    (x0, y0), (x1, y1) = hull[piece], hull[piece + 1]
    return (y1 - y0) / (x1 - x0)
