"""One step of RMDA for a list of tensors: native, by torch's multi-tensor ops, and in a loop."""

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

__all__ = ["StepNumbers", "StepTensors", "rmda", "rmda_rounded"]


@dataclasses.dataclass(frozen=True)
class StepTensors:
    """The tensors of one RMDA step, N of each, and how the penalty cuts them.

    Attributes:
        params: W, dense, of one dtype and device.
        grads: of the shape and dtype of ``params``.
        points: X, float32 (float64 for float64 params), strides of ``params``.
        anchors: W0, as ``points``.
        steps: t before the step, ``[]`` float32 each.
        alphas: ``[]`` float64 each.
        layouts: of the memory of ``params``.
        strengths: of the penalty, one number per tensor; 0 leaves a tensor unregularized.
        sizes: elements of a whole group, where the groups lie across processes.
        processes: the groups of processes across which they do. All of them take the step.
        joins: instead, where groups lie over several tensors (:class:`sparse_accel.groups.spread.Joins`).
    """

    params: list[Tensor]
    grads: list[Tensor]
    points: list[Tensor]
    anchors: list[Tensor]
    steps: list[Tensor]
    alphas: list[Tensor]
    layouts: Sequence[GroupLayout]
    strengths: Sequence[float]
    sizes: Sequence[int] = ()
    processes: Sequence[Any] = ()
    joins: Any = None


@dataclasses.dataclass(frozen=True)
class StepNumbers:
    """The numbers of one RMDA step.

    Attributes:
        lr: step size.
        momentum: c in (0, 1].
        prox: ``"soft"`` or ``"hard"``.
        maximize: ascend instead.
    """

    lr: float | Tensor
    momentum: float
    prox: str = "soft"
    maximize: bool = False


def rmda(
    tensors: StepTensors,
    numbers: StepNumbers,
    *,
    foreach: bool | None = None,
    fused: bool | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One RMDA step for N tensors, in place; :class:`RMDA` has the formulas.

    Args:
        tensors: see :class:`StepTensors`.
        numbers: see :class:`StepNumbers`.
        foreach: use torch's multi-tensor ops.
        fused: use the native op; default: if ``foreach`` is not given either.
        grad_scale: ``[]``, gradients are divided by it; fused only.
        found_inf: ``[]``, nothing changes where it is not zero; fused only.

    Raises:
        RuntimeError: ``grad_scale`` or ``found_inf`` without the native op.

    Example:
        >>> w, g, x, w0 = torch.ones(2), torch.ones(2), torch.ones(2), torch.ones(2)
        >>> t, alpha = torch.zeros(()), torch.zeros((), dtype=torch.float64)
        >>> tensors = StepTensors([w], [g], [x], [w0], [t], [alpha], [GroupLayout(1, 2, 1)], strengths=[0.0])
        >>> rmda(tensors, StepNumbers(lr=0.5, momentum=1.0))
        >>> w, t
        (tensor([0.5000, 0.5000]), tensor(1.))
    """
    take_step(
        tensors,
        numbers,
        _native,
        _multi_tensor_rmda,
        _single_tensor_rmda,
        foreach=foreach,
        fused=fused,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )


def rmda_rounded(
    tensors: StepTensors, numbers: StepNumbers, which: list[int], noise: Any, flags: dict[str, Any]
) -> None:
    """One step of some of the tensors, whose points and anchors are bfloat16.

    The points take their step in float32 and are rounded; the weights then come from the rounded ones, by a step
    without a learning rate, so that the proximal iterate of the state is that of the step.

    Args:
        tensors: of a batch.
        numbers: as for :func:`rmda`.
        which: the numbers of the tensors.
        noise: a :class:`~sparse_accel.optim.common.rounding.Rounding`.
        flags: further arguments of :func:`rmda`.
    """
    lists = {name: values for name, values in vars(tensors).items() if name not in ("processes", "joins") and values}
    rows = {name: [values[i] for i in which] for name, values in lists.items()}
    points, anchors = ([value.float() for value in rows[name]] for name in ("points", "anchors"))
    free: dict[str, Any] = {**rows, "points": points, "anchors": anchors, "strengths": [0.0] * len(which), "sizes": ()}
    free["params"] = [param.detach().clone() for param in rows["params"]]
    rmda(StepTensors(**free), dataclasses.replace(numbers, momentum=1.0), **flags)
    noise.store(rows["points"], points, which, 0)
    after: dict[str, Any] = {**rows, "points": [point.clone() for point in points], "anchors": points}
    after["grads"] = [torch.zeros_like(grad) for grad in rows["grads"]]
    after["steps"] = [(step - 1).clamp_(min=0) for step in rows["steps"]]
    after["alphas"] = [alpha.clone() for alpha in rows["alphas"]]
    where = {"processes": tensors.processes, "joins": tensors.joins}
    rmda(StepTensors(**after, **where), dataclasses.replace(numbers, lr=0.0), **flags)


def _native(**arguments: Any) -> None:
    ops.rmda_step_(**arguments)


def _advance(step: Tensor, alpha: Tensor, numbers: StepNumbers) -> tuple[Tensor, Tensor, Tensor]:
    """Advance t and alpha; return the decay of X towards W0, the signed lr, and alpha / beta (all [] float64)."""
    decay = step.double() / (step.double() + 1)
    step += 1
    beta = step.double().sqrt()
    lr = numbers.lr
    rate = lr.to(beta).reshape(()) if isinstance(lr, Tensor) else torch.full_like(beta, lr)
    alpha += rate * beta
    return decay.sqrt(), -rate if numbers.maximize else rate, alpha / beta


def _single_tensor_rmda(tensors: StepTensors, numbers: StepNumbers) -> None:
    momentum = numbers.momentum
    for i, (param, point, anchor) in enumerate(zip(tensors.params, tensors.points, tensors.anchors, strict=True)):
        decay, rate, ratio = (x.to(point) for x in _advance(tensors.steps[i], tensors.alphas[i], numbers))
        x = anchor + decay * (point - anchor) - rate * tensors.grads[i].to(point)
        point.copy_(x)
        if tensors.strengths[i]:
            x = proximal_point(x, tensors.layouts[i], ratio * tensors.strengths[i], numbers.prox)
        param.copy_(x if momentum == 1 else (1 - momentum) * param.to(x) + momentum * x)


def _multi_tensor_rmda(tensors: StepTensors, numbers: StepNumbers) -> None:
    params, points, anchors, momentum = tensors.params, tensors.points, tensors.anchors, numbers.momentum
    dtype = points[0].dtype
    scalars = [_advance(step, alpha, numbers) for step, alpha in zip(tensors.steps, tensors.alphas, strict=True)]
    decays, rates, ratios = ([x.to(points[0]) for x in column] for column in zip(*scalars, strict=True))
    torch._foreach_sub_(points, anchors)
    torch._foreach_mul_(points, decays)
    torch._foreach_add_(points, anchors)
    torch._foreach_sub_(points, torch._foreach_mul([grad.to(dtype) for grad in tensors.grads], rates))
    thresholds = [ratio * strength for ratio, strength in zip(ratios, tensors.strengths, strict=True)]
    across = across_of(tensors)
    if across is not None:
        xs = proximal_parts(points, tensors.layouts, thresholds, numbers.prox, across)
    else:
        xs = list(points)
        for i, strength in enumerate(tensors.strengths):
            if strength:
                xs[i] = proximal_point(xs[i], tensors.layouts[i], thresholds[i], numbers.prox)
    if momentum != 1:
        xs = list(torch._foreach_mul(xs, momentum))
        torch._foreach_add_(xs, torch._foreach_mul([param.to(dtype) for param in params], 1 - momentum))
    torch._foreach_copy_(params, xs)
