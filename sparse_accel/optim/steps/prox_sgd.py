"""One step of ProxSGD for a list of tensors: native, by torch's multi-tensor ops, and in a loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_accel import ops
from sparse_accel.groups import GroupLayout

from .across import across_of
from .choice import take_step
from .prox import proximal_parts, proximal_point

__all__ = ["SgdNumbers", "SgdTensors", "prox_sgd_step"]


@dataclasses.dataclass(frozen=True)
class SgdTensors:
    """The tensors of one ProxSGD step, N of each, and how the penalty cuts them.

    Attributes:
        params: W, dense, of one dtype and device.
        grads: of the shape and dtype of ``params``.
        buffers: m, float32 (float64 for float64 params), strides of ``params``.
        steps: t before the step, ``[]`` float32 each.
        layouts: of the memory of ``params``.
        strengths: of the penalty, one number per tensor; 0 leaves a tensor unregularized.
        sizes: elements of a whole group, where the groups lie across processes.
        processes: the groups of processes across which they do. All of them take the step.
        joins: instead, where groups lie over several tensors (:class:`sparse_accel.groups.spread.Joins`).
    """

    params: list[Tensor]
    grads: list[Tensor]
    buffers: list[Tensor]
    steps: list[Tensor]
    layouts: Sequence[GroupLayout]
    strengths: Sequence[float]
    sizes: Sequence[int] = ()
    processes: Sequence[Any] = ()
    joins: Any = None


@dataclasses.dataclass(frozen=True)
class SgdNumbers:
    """The numbers of one ProxSGD step.

    Attributes:
        lr: step size.
        rho: share of the new gradient, in (0, 1].
        prox: ``"soft"`` or ``"hard"``.
        maximize: ascend instead.
    """

    lr: float | Tensor
    rho: float
    prox: str = "soft"
    maximize: bool = False


def prox_sgd_step(
    tensors: SgdTensors,
    numbers: SgdNumbers,
    *,
    foreach: bool | None = None,
    fused: bool | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One ProxSGD step for N tensors, in place; :class:`ProxSGD` has the formulas.

    Args:
        tensors: see :class:`SgdTensors`.
        numbers: see :class:`SgdNumbers`.
        foreach: use torch's multi-tensor ops.
        fused: use the native op; default: if ``foreach`` is not given either.
        grad_scale: ``[]``, gradients are divided by it; fused only.
        found_inf: ``[]``, nothing changes where it is not zero; fused only.

    Raises:
        RuntimeError: ``grad_scale`` or ``found_inf`` without the native op.

    Example:
        >>> w, m, t = torch.ones(2), torch.zeros(2), torch.zeros(())
        >>> tensors = SgdTensors([w], [torch.ones(2)], [m], [t], [GroupLayout(1, 2, 1)], strengths=[0.0])
        >>> prox_sgd_step(tensors, SgdNumbers(lr=0.5, rho=1.0))
        >>> w, t
        (tensor([0.5000, 0.5000]), tensor(1.))
    """
    take_step(
        tensors,
        numbers,
        _native,
        _multi_tensor_sgd,
        _single_tensor_sgd,
        foreach=foreach,
        fused=fused,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )


def _native(**arguments: Any) -> None:
    ops.prox_sgd_step_(**arguments)


def _prepared(tensors: SgdTensors, numbers: SgdNumbers) -> tuple[list[Tensor], float | Tensor]:
    """Counts the steps. Gradients that descend, in the dtype of the buffers; lr, on the device if it is a tensor."""
    dtype, device = tensors.buffers[0].dtype, tensors.params[0].device
    torch._foreach_add_(tensors.steps, 1)
    lr = numbers.lr.reshape(()).to(device, dtype) if isinstance(numbers.lr, Tensor) else numbers.lr
    return [(-grad if numbers.maximize else grad).to(dtype) for grad in tensors.grads], lr


def _multi_tensor_sgd(tensors: SgdTensors, numbers: SgdNumbers) -> None:
    """The native proximal operator takes its threshold as a number: an lr on the device goes with the plain one."""
    grads, lr = _prepared(tensors, numbers)
    params, buffers, layouts, strengths = tensors.params, tensors.buffers, tensors.layouts, tensors.strengths
    dtype = buffers[0].dtype
    torch._foreach_mul_(buffers, 1 - numbers.rho)
    torch._foreach_add_(buffers, grads, alpha=numbers.rho)
    xs = params if params[0].dtype == dtype else [param.to(dtype) for param in params]
    if isinstance(lr, Tensor):
        torch._foreach_sub_(xs, torch._foreach_mul(buffers, lr))
    else:
        torch._foreach_add_(xs, buffers, alpha=-lr)
    penalized = [i for i, strength in enumerate(strengths) if strength]
    across = across_of(tensors)
    if across is not None:
        rate = lr if isinstance(lr, Tensor) else torch.full((), lr, dtype=dtype, device=params[0].device)
        thresholds = [rate * strength for strength in strengths]
        shrunk = proximal_parts(xs, layouts, thresholds, numbers.prox, across)
        torch._foreach_copy_(xs, shrunk)
    elif isinstance(lr, Tensor):
        for i in penalized:
            xs[i].copy_(proximal_point(xs[i], layouts[i], lr * strengths[i], numbers.prox))
    elif penalized:
        taus = [lr * strengths[i] for i in penalized]
        ops.prox_([xs[i] for i in penalized], [layouts[i] for i in penalized], taus, prox=numbers.prox)
    if xs is not params:
        torch._foreach_copy_(params, xs)


def _single_tensor_sgd(tensors: SgdTensors, numbers: SgdNumbers) -> None:
    grads, lr = _prepared(tensors, numbers)
    for i, (param, buffer) in enumerate(zip(tensors.params, tensors.buffers, strict=True)):
        buffer.mul_(1 - numbers.rho).add_(grads[i] * numbers.rho)
        x = param.to(buffer.dtype) - buffer * lr
        if tensors.strengths[i]:
            threshold = lr * tensors.strengths[i]
            if not isinstance(threshold, Tensor):
                threshold = torch.full((), threshold, dtype=x.dtype, device=x.device)  # a fill, no transfer
            x = proximal_point(x, tensors.layouts[i], threshold, numbers.prox)
        param.copy_(x)
