"""What a step prepared, kept for the next: reading parameters, their groups and state takes longer than a small step.

A plan is used where the native module finds everything as it was: the same parameters of the same shape, strides, dtype
and device, the same tensors of state, dense gradients of the parameters' dtype, and here the same penalty and grouping.
Anything else is read anew, with all checks. Where the step is no more than its native op on numbers, the plan takes it
whole, and no list of tensors passes through Python.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_accel import native
from sparse_accel.groups.coupled import ENTRY
from sparse_accel.optim._batch import check_numbers

from .projection import held_penalty

_PLAIN = (Tensor, torch.nn.Parameter)
_CUT_BY = ("penalty", "transposed", "conv_groups", "stacked", ENTRY)  # entries of a group that say how weights are cut


class _Plan(NamedTuple):
    cut: tuple[Any, ...]
    batches: list[Any]  # without their gradients
    params: list[Tensor]  # of all batches
    direct: bool  # whether its op may take the step at once
    watch: native.StepPlan


class Found(NamedTuple):
    """A plan that holds for this step, with its gradients."""

    plan: _Plan
    grads: list[Tensor]

    def batches(self) -> list[Any]:
        """The group's batches, as gathering would have them."""
        found, first = [], 0
        for batch in self.plan.batches:
            last = first + len(batch.params)
            found.append(dataclasses.replace(batch, grads=self.grads[first:last]))
            first = last
        return found

    def take_step(self, optimizer: Any, group: dict[str, Any]) -> bool:
        """The group's step by its native op at once; False, and nothing is done, where it is more than that: under a
        constraint, in another implementation, with numbers on the device, or where somebody watches the ops."""
        numbers = optimizer._op_numbers(group) if self.plan.direct and optimizer._is_fused(group) else None
        if numbers is None or getattr(optimizer, "grad_scale", None) is not None:
            return False
        if getattr(optimizer, "found_inf", None) is not None or _is_watched():
            return False
        lr = group["lr"]
        if isinstance(lr, Tensor):
            if not lr.is_cpu or lr.requires_grad:
                return False
            lr = lr.item()
        if not getattr(self.plan.watch, optimizer._op)(self.grads, lr, *numbers):
            return False
        torch.autograd.graph.increment_version(self.plan.params)
        return True


class Plans:
    """Of one optimizer: by the number of the parameter group, what its last steps had in common."""

    def __init__(self) -> None:
        self._plans: dict[int, _Plan] = {}
        self._seen: dict[int, list[int]] = {}

    def find(self, optimizer: Any, number: int) -> Found | None:
        """The group's plan, if it holds; None: its tensors have to be gathered."""
        plan = self._plans.get(number)
        if plan is None:
            return None
        group = optimizer.param_groups[number]
        if _cut_of(group) != plan.cut:
            grads = None
        else:
            grads = plan.watch.grads(optimizer.state, group["params"])
        if grads is None:
            del self._plans[number]
            return None
        check_numbers(type(optimizer).__name__, group)
        return Found(plan, grads)

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
        planned = [
            (batch.params, [number for layout in batch.layouts for number in layout], batch.strengths)
            for batch in templates
        ]
        watch = native.step_plan(optimizer.state, group["params"], planned, names, optimizer._prox_name(group))
        cut = tuple(dict(value) if isinstance(value, dict) else value for value in _cut_of(group))
        direct = held_penalty(group) is None and all(param.is_cpu or native.has_cuda() for param in params)
        self._plans[number] = _Plan(cut, templates, params, direct, watch)


def _cut_of(group: dict[str, Any]) -> tuple[Any, ...]:
    return tuple([group[key] for key in _CUT_BY])


def _is_watched() -> bool:
    """Whether modes of torch want to see the ops, which then go through its dispatcher."""
    return bool(torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack())


def _is_plain(optimizer: Any, batch: Any) -> bool:
    """Whether parameters, their memory and gradients are what the step works on: no parts, copies or scales."""
    return not batch.processes and all(
        type(param) in _PLAIN
        and param.device.type in ("cpu", "cuda")
        and work is param
        and "penalty_scale" not in optimizer.state[param]
        for param, work in zip(batch.params, batch.work, strict=True)
    )
