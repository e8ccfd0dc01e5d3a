"""One pass over all of the data that tells which modules every batch calls, how often and when."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sparse_accel.calibration.data import Calibration, device_of, eval_mode
from sparse_accel.channels.call import run_model


class Survey:
    """The calls of every module of a model.

    Attributes:
        least, most: calls that a batch makes, by module.
        first: when the first batch called each module.
    """

    def __init__(self) -> None:
        self.least: dict[nn.Module, int] = {}
        self.most: dict[nn.Module, int] = {}
        self.first: dict[nn.Module, list[int]] = {}

    def once(self) -> dict[nn.Module, list[int]]:
        """The modules that every batch calls exactly once, each with when the first batch did."""
        return {module: when for module, when in self.first.items() if self.least[module] == self.most[module] == 1}


def survey(model: nn.Module, calibration: Calibration, begin: Callable[[Any], None] = lambda batch: None) -> Survey:
    """Run a model over all of the data, whole.

    Args:
        model: in eval mode, without gradients.
        calibration: the data.
        begin: called with every batch before the model is.

    Raises:
        ValueError: the model fails on a batch.
    """
    out = Survey()
    clock = itertools.count()
    calls: dict[nn.Module, list[int]] = {}

    def hook(module: nn.Module, args: Any) -> None:
        calls.setdefault(module, []).append(next(clock))

    handles = [module.register_forward_pre_hook(hook) for module in model.modules()]
    first = True
    try:
        with torch.no_grad(), eval_mode(model):
            for batch in calibration.batches(device_of(model)):
                calls.clear()
                begin(batch)
                _run(model, batch)
                for module in model.modules():
                    count = len(calls.get(module, ()))
                    out.least[module] = count if first else min(out.least[module], count)
                    out.most[module] = max(out.most.get(module, 0), count)
                if first:
                    out.first = dict(calls)
                first = False
    finally:
        for handle in handles:
            handle.remove()
    return out


def _run(model: nn.Module, batch: Any) -> None:
    try:
        run_model(model, batch)
    except (TypeError, RuntimeError, AttributeError, IndexError) as error:
        hint = ""
        if isinstance(batch, (tuple, list)) and len(batch) > 1:
            hint = (
                f" of {len(batch)} positional inputs (if not all of them are the model's, say "
                "Calibration(data, select=lambda item: item[0]))"
            )
        raise ValueError(
            f"calibration: {type(model).__name__} fails on a batch{hint}: {type(error).__name__}: {error}"
        ) from error
