"""Times of layers on the inputs that they are given, taken in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch
from torch import Tensor, nn


def times_in_turns(
    runs: Mapping[str, Callable[[], object]], *, cuda: bool, budget_s: float, most: int = 200, least: int = 7
) -> dict[str, list[float]]:
    """Microseconds of each run in every round; in a round each runs once, in an order that turns.

    Args:
        runs: by name.
        cuda: wait for the GPU before and after each.
        budget_s: time after which no further round starts, but for the first ``least``.
        most: rounds.
        least: rounds.
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:  # a warm-up
        runs[name]()
    stop = time.perf_counter() + budget_s
    for turn in range(most):
        if turn >= least and time.perf_counter() > stop:
            break
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            runs[name]()
            if cuda:
                torch.cuda.synchronize()
            times[name].append(1e6 * (time.perf_counter() - start))
    return times


def layer_times(
    layers: Mapping[str, nn.Module], inputs: Sequence[tuple[Tensor, int]], budget_s: float
) -> dict[str, float]:
    """Microseconds of layers that compute the same, for all inputs together.

    Of the dense layer the median; of each other the median over the rounds of its time over the dense layer's in the
    same round, times the dense layer's: a load on the machine that comes and goes changes that least.

    Args:
        layers: by name, ``"dense"`` among them.
        inputs: with how often each comes.
        budget_s: for all of them.
    """
    total = dict.fromkeys(layers, 0.0)
    with torch.no_grad():
        for x, count in inputs:
            runs = {name: (lambda layer=layer, x=x: layer(x)) for name, layer in layers.items()}
            times = times_in_turns(runs, cuda=x.is_cuda, budget_s=budget_s / len(inputs))
            dense = times["dense"]
            for name, own in times.items():
                total[name] += count * median(dense) * median(mine / its for mine, its in zip(own, dense, strict=True))
    return total
