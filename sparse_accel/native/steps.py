"""Steps of optimizers, in place. Numbers that may be tensors (lr, the scale of AMP's gradients, its flag) stay on the
device where the clocks are there too: nothing waits for them. Elsewhere they are read here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._module import kernels, on_cuda


def rmda_step_(*arguments: Any) -> None:
    """As ``torch.ops.sparse_accel.rmda_step_``."""
    _step("rmda_step_", 6, 4, arguments)


def ramda_step_(*arguments: Any) -> None:
    """As ``torch.ops.sparse_accel.ramda_step_``."""
    _step("ramda_step_", 7, 5, arguments)


def prox_adamw_step_(*arguments: Any) -> None:
    """As ``torch.ops.sparse_accel.prox_adamw_step_``."""
    _step("prox_adamw_step_", 5, 4, arguments)


def prox_sgd_step_(*arguments: Any) -> None:
    """As ``torch.ops.sparse_accel.prox_sgd_step_``."""
    _step("prox_sgd_step_", 4, 3, arguments)


def _step(name: str, lists: int, clocks: int, arguments: tuple[Any, ...]) -> None:
    """`lists`: how many of the arguments are lists of tensors; `clocks`: which of them is the steps."""
    run: Callable[..., list[int]] = getattr(kernels(), name)
    layouts, prox, strengths, lr, lr_tensor, *numbers, grad_scale, found_inf = arguments[lists:]
    tensors: list[Sequence[Tensor]] = list(arguments[:lists])
    scale = 1.0
    if tensors[0] and not (lr_tensor is None and grad_scale is None and found_inf is None):
        param, steps = tensors[0][0], tensors[clocks]
        _check_one_element(name, lr=lr_tensor, grad_scale=grad_scale, found_inf=found_inf)
        cuda = on_cuda(param)
        stays = cuda and bool(steps) and steps[0].device == param.device
        if lr_tensor is not None:
            if stays and lr_tensor.device == param.device:
                lr_tensor = lr_tensor.to(torch.float64)
            else:
                lr, lr_tensor = float(lr_tensor), None
        if found_inf is not None:
            if stays:
                found_inf = found_inf.to(param.device, torch.float32)
            elif float(found_inf) != 0:
                return
            else:
                found_inf = None
        if grad_scale is not None:
            if cuda:
                grad_scale = grad_scale.to(param.device, torch.float32)
            else:
                scale, grad_scale = float(grad_scale), None
    rest = (layouts, prox, strengths, lr, lr_tensor, *numbers, scale, grad_scale, found_inf)
    others = run(*tensors, *rest)
    if others:  # gradients in another memory order than their parameters
        grads = list(tensors[1])
        for i in others:
            param = tensors[0][i]
            grads[i] = torch.empty_strided(param.shape, param.stride(), dtype=param.dtype, device=param.device)
            grads[i].copy_(tensors[1][i].detach())
        run(tensors[0], grads, *tensors[2:], *rest)


def _check_one_element(op: str, **numbers: Tensor | None) -> None:
    for name, number in numbers.items():
        if number is not None and number.numel() != 1:
            raise ValueError(f"{op}: {name}: expected one element, got shape {list(number.shape)}")
