"""Whether what an optimizer prepared for one step still holds for the next, and the step itself where it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from ._module import kernels

PlannedBatch = tuple[list[Tensor], list[int], list[float]]  # parameters, layouts (4 numbers each), strengths


class StepPlan(Protocol):
    """Parameters in their memory order, with their state.

    The steps take the list that :meth:`grads` has just given; they return False, and do nothing, where gradients lie in
    another memory order than their parameters.
    """

    def grads(self, everything: dict[Tensor, dict[str, Any]], group: list[Tensor]) -> list[Tensor] | None:
        """The gradients, batch by batch, or None where anything has changed."""

    def rmda_step_(self, grads: list[Tensor], lr: float, momentum: float, maximize: bool) -> bool:
        """As the op."""

    def ramda_step_(self, grads: list[Tensor], lr: float, momentum: float, eps: float, maximize: bool) -> bool:
        """As the op."""

    def prox_adamw_step_(
        self,
        grads: list[Tensor],
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        maximize: bool,
    ) -> bool:
        """As the op."""

    def prox_sgd_step_(self, grads: list[Tensor], lr: float, rho: float, maximize: bool) -> bool:
        """As the op."""


def step_plan(
    everything: dict[Tensor, dict[str, Any]],
    group: list[Tensor],
    batches: Sequence[PlannedBatch],
    names: Sequence[str],
    prox: str,
) -> StepPlan:
    """Note how things are.

    Args:
        everything: the optimizer's state.
        group: the parameters of one of its groups; those in no batch have no gradient.
        batches: those that take the step, plain dense tensors, of one dtype and device each.
        names: of the tensors of state that the step takes, in the order of its op.
        prox: the penalty's.
    """
    plan: StepPlan = kernels().StepPlan(everything, group, list(batches), list(names), prox)
    return plan
