"""SPPAM's iterates beside the parameters: the point before, the extrapolated one, the running mean."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._batch import state_dtype
from ._closure import real


def extrapolated(param: Tensor, previous: Tensor | None, momentum: float) -> Tensor:
    """z = x + momentum (x - previous), in the dtype of the state and the strides of the parameter (as real numbers).

    Raises:
        RuntimeError: ``previous`` has not the parameter's shape.
    """
    x = real(param)
    x = x.to(state_dtype(param), copy=True)
    if previous is None or momentum == 0:
        return x
    if previous.shape != x.shape:
        raise RuntimeError(
            f"state 'previous' has shape {tuple(previous.shape)}, its parameter {tuple(x.shape)}: "
            "prune with compact(..., optimizer=optimizer), or make a new optimizer"
        )
    return x.add_(x - previous, alpha=momentum)


def advance(state: dict[str, Any], param: Tensor, before: Tensor, averaging: int | None) -> None:
    """The state after a step that has set the parameter.

    Args:
        state: of the parameter, with ``step``; ``previous`` and ``average`` are set.
        param: the new iterate.
        before: its value until then.
        averaging: steps after which the mean begins; None for no mean.
    """
    state["step"] += 1
    state["previous"] = real(before).to(state_dtype(param), copy=True)
    if averaging is None:
        return
    count = float(state["step"]) - averaging
    now = real(param).to(state_dtype(param), copy=True)
    if count <= 1 or "average" not in state:
        state["average"] = now
    else:
        state["average"] += (now - state["average"]) / count
