"""Parameters sorted for multi-tensor calls, and the checks of an optimizer's numbers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from sparse_accel.groups import Grouping, GroupLayout


@dataclasses.dataclass
class Batch:
    """Parameters of one group on one device and of one dtype, ready for one multi-tensor call."""

    params: list[Tensor] = dataclasses.field(default_factory=list)  # as the user holds them
    work: list[Tensor] = dataclasses.field(default_factory=list)  # params, or contiguous copies; complex as real
    grads: list[Tensor] = dataclasses.field(default_factory=list)  # shape of work
    layouts: list[GroupLayout] = dataclasses.field(default_factory=list)  # of work's memory
    strengths: list[float] = dataclasses.field(default_factory=list)  # 0 where the penalty is not about the parameter

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
        for param, work in zip(self.params, self.work, strict=True):
            if work is not param and work.data_ptr() != param.data_ptr():
                (torch.view_as_real(param) if param.is_complex() else param).copy_(work)
        if not torch.is_grad_enabled():
            torch.autograd.graph.increment_version(self.params)


class Kept:
    """A state tensor on its way through Optimizer.load_state_dict, which would cast a bare tensor to the
    parameter's dtype and thereby round the float32 state of half-precision parameters."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def state_dtype(param: Tensor) -> torch.dtype:
    """float64 for float64 and complex128 parameters, else float32."""
    return torch.float64 if param.dtype in (torch.float64, torch.complex128) else torch.float32


def check_lr(lr: float | Tensor) -> None:
    """Raise ValueError unless lr is one number >= 0."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"Tensor lr must be 1-element, got shape {tuple(lr.shape)}")
    elif not (math.isfinite(lr) and lr >= 0):
        raise ValueError(f"lr: expected a finite number >= 0, got {lr!r}")


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


def check_finite(name: str, value: float, least: float = -math.inf) -> None:
    """Raise ValueError unless the value is a finite number, at least ``least``."""
    if not (math.isfinite(value) and value >= least):
        bound = "" if least == -math.inf else f" >= {least:g}"
        raise ValueError(f"{name}: expected a finite number{bound}, got {value!r}")


def check_count(name: str, value: float, expected: str, least: int) -> None:
    """Raise ValueError unless the value is a whole number, at least ``least``; ``expected`` says so in words."""
    if isinstance(value, bool) or int(value) != value or value < least:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


def grouping_of(group: dict[str, Any], by: str) -> Grouping:
    """How the weights of a parameter group are cut."""
    return Grouping(by, group["transposed"], group["conv_groups"], group["stacked"])
