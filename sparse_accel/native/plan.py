"""Whether what an optimizer prepared for one step still holds for the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from ._module import kernels


class StepPlan(Protocol):
    """Parameters in their memory order, with their state."""

    def grads(self, everything: dict[Tensor, dict[str, Any]], group: list[Tensor]) -> list[Tensor] | None:
        """The gradients, or None where anything has changed."""


def step_plan(
    everything: dict[Tensor, dict[str, Any]], group: list[Tensor], params: Sequence[Tensor], names: Sequence[str]
) -> StepPlan:
    """Note how things are.

    Args:
        everything: the optimizer's state.
        group: the parameters of one of its groups.
        params: those of them that take the step, plain dense tensors; the others have no gradient.
        names: of the tensors of state that the step takes.
    """
    plan: StepPlan = kernels().StepPlan(everything, group, list(params), list(names))
    return plan
