"""Which implementation takes a step: the native op, torch's multi-tensor ops, or a loop of plain ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .across import FIELDS, across_of


def take_step(
    tensors: Any,
    numbers: Any,
    native: Callable[..., None],
    multi_tensor: Callable[[Any, Any], None],
    single_tensor: Callable[[Any, Any], None],
    *,
    foreach: bool | None,
    fused: bool | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """Take a step; nothing happens without tensors.

    Args:
        tensors: a dataclass of the lists, ``params`` among them; where its groups lie across tensors or processes, the
            step is that of ``multi_tensor``, whatever the flags.
        numbers: a dataclass of the numbers, ``lr`` among them.
        native: takes the fields of both, and the last two arguments, by name; the default.
        multi_tensor: takes both; for ``foreach=True``.
        single_tensor: takes both; for ``foreach=False`` or ``fused=False``.
        foreach, fused: as the user has them.
        grad_scale: ``[]``, gradients are divided by it; native only.
        found_inf: ``[]``, nothing changes where it is not zero; native only.

    Raises:
        RuntimeError: ``grad_scale`` or ``found_inf`` without the native op, or with groups that lie across processes.
    """
    across = across_of(tensors) is not None
    if across and (grad_scale is not None or found_inf is not None):
        raise RuntimeError("grad_scale and found_inf: expected groups that lie on one process each")
    if not tensors.params:
        return
    foreach, fused = foreach or across, False if across else fused
    if isinstance(numbers.lr, Tensor) and numbers.lr.is_cpu and not numbers.lr.requires_grad:
        numbers = dataclasses.replace(numbers, lr=numbers.lr.item())
    if fused if fused is not None else foreach is None:
        device = tensors.params[0].device
        native(
            **{name: values for name, values in vars(tensors).items() if name not in FIELDS},
            **vars(numbers),
            grad_scale=None if grad_scale is None else grad_scale.to(device),
            found_inf=None if found_inf is None else found_inf.to(device),
        )
    elif grad_scale is not None or found_inf is not None:
        raise RuntimeError("grad_scale and found_inf: expected fused=True")
    else:
        (multi_tensor if foreach else single_tensor)(tensors, numbers)
