"""One step of ProxAdamW for a list of tensors: native, by torch's multi-tensor ops, and in a loop."""

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
from .prox import metric_parts, metric_point

__all__ = ["AdamwNumbers", "AdamwTensors", "prox_adamw"]


@dataclasses.dataclass(frozen=True)
class AdamwTensors:
    """The tensors of one ProxAdamW step, N of each, and how the penalty cuts them.

    Attributes:
        params: W, dense, of one dtype and device.
        grads: of the shape and dtype of ``params``.
        exp_avgs: m, float32 (float64 for float64 params), strides of ``params``.
        exp_avg_sqs: v, as ``exp_avgs``.
        steps: t before the step, ``[]`` float32 each.
        layouts: of the memory of ``params``.
        strengths: of the penalty, one number per tensor; 0 leaves a tensor unregularized.
        sizes: elements of a whole group, where the groups lie across processes.
        processes: the groups of processes across which they do. All of them take the step.
        joins: instead, where groups lie over several tensors (:class:`sparse_accel.groups.spread.Joins`).
    """

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]
    layouts: Sequence[GroupLayout]
    strengths: Sequence[float]
    sizes: Sequence[int] = ()
    processes: Sequence[Any] = ()
    joins: Any = None


@dataclasses.dataclass(frozen=True)
class AdamwNumbers:
    """The numbers of one ProxAdamW step.

    Attributes:
        lr: step size.
        beta1: decay of m.
        beta2: decay of v.
        eps: >= 0.
        weight_decay: decoupled, >= 0.
        prox: ``"soft"`` or ``"hard"``.
        maximize: ascend instead.
    """

    lr: float | Tensor
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-2
    prox: str = "soft"
    maximize: bool = False


def prox_adamw(
    tensors: AdamwTensors,
    numbers: AdamwNumbers,
    *,
    foreach: bool | None = None,
    fused: bool | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One ProxAdamW step for N tensors, in place; :class:`ProxAdamW` has the formulas.

    Args:
        tensors: see :class:`AdamwTensors`.
        numbers: see :class:`AdamwNumbers`.
        foreach: use torch's multi-tensor ops.
        fused: use the native op; default: if ``foreach`` is not given either.
        grad_scale: ``[]``, gradients are divided by it; fused only.
        found_inf: ``[]``, nothing changes where it is not zero; fused only.

    Raises:
        RuntimeError: ``grad_scale`` or ``found_inf`` without the native op.

    Example:
        >>> w, m, v, t = torch.ones(2), torch.zeros(2), torch.zeros(2), torch.zeros(())
        >>> tensors = AdamwTensors([w], [torch.ones(2)], [m], [v], [t], [GroupLayout(1, 2, 1)], strengths=[0.0])
        >>> prox_adamw(tensors, AdamwNumbers(lr=0.5, weight_decay=0.0))
        >>> w, t
        (tensor([0.5000, 0.5000]), tensor(1.))
    """
    take_step(
        tensors,
        numbers,
        lambda **arguments: ops.prox_adamw_step_(**arguments),
        _multi_tensor_prox_adamw,
        _single_tensor_prox_adamw,
        foreach=foreach,
        fused=fused,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )


def _advance(step: Tensor, numbers: AdamwNumbers) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Advance t; return lr, the share of W that decay leaves, lr / (1 - beta1^t) and sqrt(1 - beta2^t), [] float64."""
    step += 1
    t = step.double()
    rate = numbers.lr.to(t).reshape(()) if isinstance(numbers.lr, Tensor) else torch.full_like(t, numbers.lr)
    size = rate / (1 - numbers.beta1**t)
    return rate, 1 - rate * numbers.weight_decay, size, (1 - numbers.beta2**t).sqrt()


def _single_tensor_prox_adamw(tensors: AdamwTensors, numbers: AdamwNumbers) -> None:
    beta1, beta2 = numbers.beta1, numbers.beta2
    for i, (param, mean, square) in enumerate(zip(tensors.params, tensors.exp_avgs, tensors.exp_avg_sqs, strict=True)):
        rate, rest, size, root = (x.to(mean) for x in _advance(tensors.steps[i], numbers))
        grad = tensors.grads[i].to(mean)
        grad = -grad if numbers.maximize else grad
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        zero = square == 0
        deviation = torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())  # no gradient is NaN at 0
        metric = deviation / root + numbers.eps
        before = param.clone() if torch.is_grad_enabled() else param  # autograd keeps it, and it is about to change
        x = before.to(mean) * rest + (-size * mean) / metric
        if tensors.strengths[i]:
            x = metric_point(x, metric, tensors.layouts[i], rate * tensors.strengths[i], numbers.prox)
        param.copy_(x)


def _multi_tensor_prox_adamw(tensors: AdamwTensors, numbers: AdamwNumbers) -> None:
    params, means, squares = tensors.params, tensors.exp_avgs, tensors.exp_avg_sqs
    dtype = means[0].dtype
    scalars = [_advance(step, numbers) for step in tensors.steps]
    rates, rests, sizes, roots = ([x.to(means[0]) for x in column] for column in zip(*scalars, strict=True))
    grads = [(-grad if numbers.maximize else grad).to(dtype) for grad in tensors.grads]
    torch._foreach_lerp_(means, grads, 1 - numbers.beta1)
    torch._foreach_mul_(squares, numbers.beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - numbers.beta2)
    metrics = torch._foreach_sqrt(squares)
    torch._foreach_div_(metrics, roots)
    torch._foreach_add_(metrics, numbers.eps)
    moves = torch._foreach_mul(means, sizes)
    torch._foreach_div_(moves, metrics)
    xs = list(torch._foreach_mul([param.to(dtype) for param in params], rests))
    torch._foreach_sub_(xs, moves)
    thresholds = [rate * strength for rate, strength in zip(rates, tensors.strengths, strict=True)]
    across = across_of(tensors)
    if across is not None:
        xs = metric_parts(xs, list(metrics), tensors.layouts, thresholds, numbers.prox, across)
    for i, strength in enumerate(tensors.strengths if across is None else ()):
        if strength:
            xs[i] = metric_point(xs[i], metrics[i], tensors.layouts[i], thresholds[i], numbers.prox)
    torch._foreach_copy_(params, xs)
