"""What a run costs: multiply-accumulates and milliseconds."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparse_accel.channels.runs import first_of, run_as_is, run_model

logger = logging.getLogger("sparse_accel.report")


def _grouped_flops(left: torch.Size, right: torch.Size, *_: Any, **__: Any) -> int:
    """FLOPs of ``torch._grouped_mm``: of rows with their group's matrix, of groups of columns, or of a batch."""
    groups = left[0] if len(left) == len(right) == 3 else 1
    return 2 * groups * left[-2] * left[-1] * right[-1]


# What the counter of PyTorch does not know: the products of a mixture's experts.
_MORE_FLOPS = {torch.ops.aten._grouped_mm: _grouped_flops}


def count_macs(model: nn.Module, example_inputs: Any) -> dict[str, int]:
    """Multiply-accumulates of one run by module name, ``""`` for the whole: FLOPs of ``torch.utils.flop_counter`` / 2.

    It counts matrix products, grouped ones too, convolutions and attention, nothing elementwise; of several examples
    the first. Empty, with a warning, where it fails.

    Example:
        >>> count_macs(nn.Linear(3, 2), torch.zeros(5, 3))[""]
        30
    """
    counter = FlopCounterMode(display=False, custom_mapping=_MORE_FLOPS)
    try:
        with torch.no_grad(), counter:
            run_model(model, copy.deepcopy(first_of(example_inputs)))
    except Exception as error:  # the model runs without it: a report without MACs is better than none
        logger.warning("MACs are not counted: torch.utils.flop_counter: %s: %s", type(error).__name__, error)
        return {}
    counts = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    root = type(model).__name__ + "."
    out = {name.removeprefix(root): count for name, count in counts.items() if name.startswith(root)}
    out[""] = counts.get("Global", 0)
    return out


def latencies_ms(
    models: Sequence[nn.Module], example_inputs: Any, *, budget_s: float = 0.5, most: int = 50
) -> list[float]:
    """Median wall time of one run of each model in milliseconds, the models taking turns.

    Args:
        models: in the mode to measure.
        example_inputs: see :func:`run_model`; of several examples the first counts.
        budget_s: time after which no further round starts, but for the first five (of large models, the first one).
        most: number of rounds.
    """
    inputs = copy.deepcopy(first_of(example_inputs))
    cuda = any(tensor.is_cuda for model in models for tensor in model.parameters())
    times: list[list[float]] = [[] for _ in models]
    stop = float("inf")
    with torch.no_grad():
        for turn in range(most + 1):
            for model, own in zip(models, times, strict=True):
                if cuda:
                    torch.cuda.synchronize()
                start = time.perf_counter()
                run_as_is(model, inputs)
                if cuda:
                    torch.cuda.synchronize()
                if turn > 0:  # the first is a warm-up
                    own.append(1e3 * (time.perf_counter() - start))
            stop = min(stop, time.perf_counter() + budget_s)
            late = time.perf_counter() - stop
            if late > 0 and (turn >= 5 or (turn > 0 and late > 4 * budget_s)):
                break
    return [sorted(own)[len(own) // 2] for own in times]
