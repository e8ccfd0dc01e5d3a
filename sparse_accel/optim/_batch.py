"""Parameters sorted for multi-tensor calls, and the checks of an optimizer's numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_accel.groups import Grouping, GroupLayout
from sparse_accel.penalties import cached_layout
from sparse_accel.sharding import aligned, is_flat, is_sharded, local_part, shard_dims, shard_groups

_ELEMENT = Grouping("element")


class Reading(NamedTuple):
    """One parameter as the step sees it; what the fields are: :class:`Batch`."""

    home: Tensor
    work: Tensor
    grad: Tensor | None
    layout: GroupLayout
    size: int
    processes: tuple[Any, ...]
    penalized: bool


def read_parameter(optimizer: str, param: Tensor, grad: Tensor | None, grouping: Grouping | None) -> Reading:
    """Check a parameter and its gradient, and find the groups in its memory.

    Args:
        optimizer: its name, for messages.
        param: any strides, real or complex; of a DTensor the part here is read.
        grad: its gradient, if it is wanted.
        grouping: of the penalty, if there is one.

    Raises:
        RuntimeError: the gradient is sparse, or sharded otherwise than the parameter and not to be brought in line; or
            the parameter is no floating point, complex under a penalty or sharded, or flat under a penalty by groups.
        ValueError: the penalty's groups lie across the parts of a sharded grouped convolution.
    """
    sharded = is_sharded(param)
    home = work = local_part(param) if sharded else param
    if grad is not None:
        if grad.layout != torch.strided:
            raise RuntimeError(
                f"{optimizer} does not support sparse gradients: expected a dense gradient for the parameter of shape "
                f"{tuple(param.shape)}, got layout {grad.layout}"
            )
        if sharded or is_sharded(grad):
            grad = local_part(aligned("the gradient", grad, param))
    penalized = grouping is not None and grouping.applies_to(param)
    if grouping is not None and not penalized and is_flat(param):
        raise RuntimeError(
            f"the penalty by {grouping.by!r} cannot see groups in the flat parameter of shape {tuple(param.shape)} "
            "(FSDP1, DeepSpeed ZeRO-3): shard by torch.distributed.fsdp.fully_shard (accelerate: fsdp_version=2), or "
            "take L1"
        )
    if param.is_complex():
        if penalized or sharded:
            why = "a penalty on complex parameters is" if penalized else "steps of sharded complex parameters are"
            raise RuntimeError(
                f"{why} not defined: put the {param.dtype} parameter of shape {tuple(param.shape)} in a group with "
                "penalty=None" + ("" if penalized else " of a model that is not sharded")
            )
        work = torch.view_as_real(home)
        grad = None if grad is None else torch.view_as_real(grad.resolve_conj())
    elif not param.is_floating_point():
        raise RuntimeError(f"expected floating-point or complex parameters, got {param.dtype}")
    own = grouping if grouping is not None and penalized else _ELEMENT
    here = own
    processes: tuple[Any, ...] = ()
    if sharded:
        here = own.of_part(shard_dims(param))
        processes = shard_groups(param, own.group_dims(param.dim())) if penalized else ()
    layout, in_place = cached_layout(work.shape, work.stride(), here)
    size = 0
    if processes:
        apart = own.group_dims(param.dim())
        size = math.prod(length for dim, length in enumerate(param.shape) if dim not in apart)
    if not in_place:
        work = work.clone(memory_format=torch.contiguous_format)
    if grad is not None and (grad.dtype != work.dtype or grad.is_neg()):
        grad = grad.resolve_neg().to(work.dtype)
    return Reading(home, work, grad, layout, size, processes, penalized)


@dataclasses.dataclass
class Batch:
    """Parameters of one group on one device and of one dtype, ready for one multi-tensor call."""

    params: list[Tensor] = dataclasses.field(default_factory=list)  # as the user holds them
    homes: list[Tensor] = dataclasses.field(default_factory=list)  # their memory here: of a DTensor this process's part
    work: list[Tensor] = dataclasses.field(default_factory=list)  # homes, or contiguous copies; complex as real
    grads: list[Tensor] = dataclasses.field(default_factory=list)  # shape of work
    layouts: list[GroupLayout] = dataclasses.field(default_factory=list)  # of work's memory
    strengths: list[float] = dataclasses.field(default_factory=list)  # 0 where the penalty is not about the parameter
    sizes: list[int] = dataclasses.field(default_factory=list)  # elements of a whole group, where there are processes
    processes: tuple[Any, ...] = ()  # process groups over which the groups lie, none where each is on one process
    joins: Any = None  # a groups.spread.Joins, where groups lie over several of the tensors
    lists: list[list[Tensor]] | None = None  # the state, where it is known to be there and in order
    fresh: bool = False  # lists are there, but of parameters that had no state

    def copy(self) -> Batch:
        """Another batch of the same lists: a step puts others in their place."""
        return dataclasses.replace(self)

    def without_state(self) -> Iterable[tuple[Tensor, Tensor]]:
        """The parameters that may have no state yet, with their memory."""
        return () if self.lists is not None else zip(self.params, self.work, strict=True)

    def cuts(self) -> tuple[list[GroupLayout], list[float], list[int], tuple[Any, ...], Any]:
        """How the penalty cuts the tensors: layouts, strengths, sizes, processes, joins."""
        return self.layouts, self.strengths, self.sizes, self.processes, self.joins

    @property
    def is_across(self) -> bool:
        """Whether groups lie across its tensors, or across processes."""
        return bool(self.processes) or self.joins is not None

    def add(self, param: Tensor, one: Reading, strength: float) -> None:
        """Take in a parameter."""
        self.params.append(param)
        self.homes.append(one.home)
        self.work.append(one.work)
        if one.grad is not None:
            self.grads.append(one.grad)
        self.layouts.append(one.layout)
        self.strengths.append(strength)
        self.sizes.append(one.size)

    def add_decay(self, group: dict[str, Any], grad_scale: Tensor | None) -> None:
        """Add ``weight_decay`` times the parameters to the gradients, which are the user's and stay as they are.

        Args:
            group: of the optimizer.
            grad_scale: what the gradients are scaled by, if so.
        """
        if group["weight_decay"] == 0:
            return
        decay = -group["weight_decay"] if group["maximize"] else group["weight_decay"]
        work = self.work
        if grad_scale is not None:
            work = list(torch._foreach_mul(work, grad_scale.to(work[0]).reshape(())))
        self.grads = list(torch._foreach_add(self.grads, work, alpha=decay))

    def write_back(self) -> None:
        """Copy the contiguous copies back into their parameters, and tell autograd that all have changed."""
        for home, work in zip(self.homes, self.work, strict=True):
            if work is not home and work.data_ptr() != home.data_ptr():
                (torch.view_as_real(home) if home.is_complex() else home).copy_(work)
        if not torch.is_grad_enabled():
            torch.autograd.graph.increment_version(self.params)


class Kept:
    """A state tensor on its way through Optimizer.load_state_dict, which would cast a bare tensor to the
    parameter's dtype and thereby round the float32 state of half-precision parameters."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def state_dtype(param: Tensor, low: str | None = None) -> torch.dtype:
    """float64 for float64 and complex128 parameters, else float32, or what ``low`` names."""
    if param.dtype in (torch.float64, torch.complex128):
        return torch.float64
    return torch.float32 if low is None else torch.bfloat16


def check_lr(lr: float | Tensor) -> None:
    """Raise ValueError unless lr is one number >= 0."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"Tensor lr must be 1-element, got shape {tuple(lr.shape)}")
    elif not (math.isfinite(lr) and lr >= 0):
        raise ValueError(f"lr: expected a finite number >= 0, got {lr!r}")


def rates(lr: float | Tensor, steps: Iterable[Tensor]) -> list[Tensor]:
    """The step size as ``[]`` float64 beside each clock: nothing waits for one on a device."""
    if isinstance(lr, Tensor):
        return [lr.detach().to(step.device, torch.float64).reshape(()) for step in steps]
    return [torch.full((), lr, dtype=torch.float64, device=step.device) for step in steps]


def check_fraction(name: str, value: float) -> None:
    """Raise ValueError unless 0 < value <= 1."""
    if not 0 < value <= 1:
        raise ValueError(f"{name}: expected a number in (0, 1], got {value!r}")


def check_momentum_is_own(name: str, group: dict[str, Any]) -> None:
    """Raise RuntimeError where one of torch's schedulers (by the entries that it leaves) has set the momentum."""
    if "momentum" in group and ("base_momentum" in group or "max_momentum" in group):
        raise RuntimeError(
            f"a scheduler cycles the momentum: that of {name} is the share of the new point, torch's that of the old; "
            "make the scheduler (OneCycleLR, CyclicLR) with cycle_momentum=False"
        )


def check_numbers(name: str, group: dict[str, Any]) -> None:
    """What is looked at in every step: schedulers write these."""
    check_lr(group["lr"])
    check_momentum_is_own(name, group)


def check_finite(name: str, value: float, least: float = -math.inf) -> None:
    """Raise ValueError unless the value is a finite number, at least ``least``."""
    if not (math.isfinite(value) and value >= least):
        bound = "" if least == -math.inf else f" >= {least:g}"
        raise ValueError(f"{name}: expected a finite number{bound}, got {value!r}")


def check_target(group: dict[str, Any]) -> None:
    """Raise ValueError where a target is about multiplications, and those of the group's parameters are not known."""
    penalty = group["penalty"]
    if penalty is None or penalty.get("of") != "flops":
        return
    costs = group.get("costs")
    if not isinstance(costs, (list, tuple)) or len(costs) != len(group["params"]):
        raise ValueError(
            "of='flops': expected an entry 'costs' of the parameter group, the multiplications per sample of one "
            f"weight of each of its {len(group['params'])} parameters: make the groups by "
            "param_groups(..., example=inputs)"
        )
    for cost in costs:
        check_finite("costs", cost, 0)


def check_count(name: str, value: float, expected: str, least: int) -> None:
    """Raise ValueError unless the value is a whole number, at least ``least``; ``expected`` says so in words."""
    if isinstance(value, bool) or int(value) != value or value < least:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


def grouping_of(group: dict[str, Any], by: str) -> Grouping:
    """How the weights of a parameter group are cut."""
    return Grouping(by, group["transposed"], group["conv_groups"], group["stacked"])
