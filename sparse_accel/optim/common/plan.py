"""What a step prepared, kept for the next: reading parameters, their groups and state takes longer than a small step.

A plan is used where the native module finds everything as it was: the same parameters of the same shape, strides, dtype
and device, the same tensors of state, dense gradients of the parameters' dtype, and here the same penalty and grouping.
Anything else is read anew, with all checks.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_accel import native
from sparse_accel.groups.coupled import ENTRY
from sparse_accel.optim._batch import check_numbers

_PLAIN = (Tensor, torch.nn.Parameter)
_CUT_BY = ("penalty", "transposed", "conv_groups", "stacked", ENTRY)  # entries of a group that say how weights are cut


class _Plan(NamedTuple):
    cut: tuple[Any, ...]
    batches: list[Any]  # without their gradients
    watch: native.StepPlan


class Plans:
    """Of one optimizer: by the number of the parameter group, what its last steps had in common."""

    def __init__(self) -> None:
        self._plans: dict[int, _Plan] = {}
        self._seen: dict[int, list[int]] = {}

    def batches(self, optimizer: Any, number: int) -> list[Any] | None:
        """The group's batches with the gradients of now; None: they have to be gathered."""
        plan = self._plans.get(number)
        if plan is None:
            return None
        group = optimizer.param_groups[number]
        if tuple(group[key] for key in _CUT_BY) != plan.cut:
            grads = None
        else:
            grads = plan.watch.grads(optimizer.state, group["params"])
        if grads is None:
            del self._plans[number]
            return None
        check_numbers(type(optimizer).__name__, group)
        found, first = [], 0
        for batch in plan.batches:
            last = first + len(batch.params)
            found.append(dataclasses.replace(batch, grads=grads[first:last]))
            first = last
        return found

    def keep(self, optimizer: Any, number: int, batches: list[Any]) -> None:
        """After a step: remember what it was gathered for, if the step before it had the same parameters."""
        group = optimizer.param_groups[number]
        params = [param for batch in batches for param in batch.params]
        known = [id(param) for param in params]
        if self._seen.get(number) != known:
            self._seen[number] = known
            return
        coupled = group[ENTRY] is not None  # brought together anew in every step
        if (
            not params
            or coupled
            or group["differentiable"]
            or not all(_is_plain(optimizer, batch) for batch in batches)
        ):
            return
        templates = [
            dataclasses.replace(batch, grads=[], lists=optimizer._tensor_lists(batch), strengths=list(batch.strengths))
            for batch in batches
        ]
        names = (*optimizer._tensor_state, *optimizer._scalar_state)
        watch = native.step_plan(optimizer.state, group["params"], params, names)
        cut = tuple(dict(group[key]) if isinstance(group[key], dict) else group[key] for key in _CUT_BY)
        self._plans[number] = _Plan(cut, templates, watch)


def _is_plain(optimizer: Any, batch: Any) -> bool:
    """Whether parameters, their memory and gradients are what the step works on: no parts, copies or scales."""
    return not batch.processes and all(
        type(param) in _PLAIN
        and param.device.type in ("cpu", "cuda")
        and work is param
        and "penalty_scale" not in optimizer.state[param]
        for param, work in zip(batch.params, batch.work, strict=True)
    )
