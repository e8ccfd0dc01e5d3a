"""One step of RAMDA for a list of tensors: native, by torch's multi-tensor ops, and in a loop."""

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

__all__ = ["RamdaNumbers", "RamdaTensors", "ramda", "ramda_rounded"]


@dataclasses.dataclass(frozen=True)
class RamdaTensors:
    """The tensors of one RAMDA step, N of each, and how the penalty cuts them.

    Attributes:
        params: W, dense, of one dtype and device.
        grads: of the shape and dtype of ``params``.
        duals: V, float32 (float64 for float64 params), strides of ``params``.
        squares: U, as ``duals``.
        anchors: W0, as ``duals``.
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
    duals: list[Tensor]
    squares: list[Tensor]
    anchors: list[Tensor]
    steps: list[Tensor]
    alphas: list[Tensor]
    layouts: Sequence[GroupLayout]
    strengths: Sequence[float]
    sizes: Sequence[int] = ()
    processes: Sequence[Any] = ()
    joins: Any = None


@dataclasses.dataclass(frozen=True)
class RamdaNumbers:
    """The numbers of one RAMDA step.

    Attributes:
        lr: step size.
        momentum: c in (0, 1].
        eps: > 0.
        prox: ``"soft"`` or ``"hard"``.
        maximize: ascend instead.
    """

    lr: float | Tensor
    momentum: float
    eps: float = 1e-6
    prox: str = "soft"
    maximize: bool = False


def ramda(
    tensors: RamdaTensors,
    numbers: RamdaNumbers,
    *,
    foreach: bool | None = None,
    fused: bool | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One RAMDA step for N tensors, in place; :class:`RAMDA` has the formulas.

    Args:
        tensors: see :class:`RamdaTensors`.
        numbers: see :class:`RamdaNumbers`.
        foreach: use torch's multi-tensor ops.
        fused: use the native op; default: if ``foreach`` is not given either.
        grad_scale: ``[]``, gradients are divided by it; fused only.
        found_inf: ``[]``, nothing changes where it is not zero; fused only.

    Raises:
        RuntimeError: ``grad_scale`` or ``found_inf`` without the native op.

    Example:
        >>> w, g, v, u, w0 = torch.ones(2), torch.ones(2), torch.zeros(2), torch.zeros(2), torch.ones(2)
        >>> t, alpha = torch.zeros(()), torch.zeros((), dtype=torch.float64)
        >>> layouts = [GroupLayout(1, 2, 1)]
        >>> tensors = RamdaTensors([w], [g], [v], [u], [w0], [t], [alpha], layouts, strengths=[0.0])
        >>> ramda(tensors, RamdaNumbers(lr=0.125, momentum=1.0))
        >>> w, t
        (tensor([0.7500, 0.7500]), tensor(1.))
    """
    take_step(
        tensors,
        numbers,
        lambda **arguments: ops.ramda_step_(**arguments),
        _multi_tensor_ramda,
        _single_tensor_ramda,
        foreach=foreach,
        fused=fused,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )


def ramda_rounded(
    tensors: RamdaTensors, numbers: RamdaNumbers, which: list[int], noise: Any, flags: dict[str, Any]
) -> None:
    """One step of some of the tensors, whose state is bfloat16, as :func:`~.rmda.rmda_rounded`: V and U take their step
    in float32 and are rounded, and the weights come from the rounded ones.

    Args:
        tensors: of a batch.
        numbers: as for :func:`ramda`.
        which: the numbers of the tensors.
        noise: a :class:`~sparse_accel.optim.common.rounding.Rounding`.
        flags: further arguments of :func:`ramda`.
    """
    lists = {name: values for name, values in vars(tensors).items() if name not in ("processes", "joins") and values}
    rows = {name: [values[i] for i in which] for name, values in lists.items()}
    wide = {name: [value.float() for value in rows[name]] for name in ("duals", "squares", "anchors")}
    free: dict[str, Any] = {**rows, **wide, "strengths": [0.0] * len(which), "sizes": ()}
    free["params"] = [param.detach().clone() for param in rows["params"]]
    ramda(RamdaTensors(**free), dataclasses.replace(numbers, momentum=1.0), **flags)
    noise.store(rows["duals"], wide["duals"], which, 0)
    noise.store(rows["squares"], wide["squares"], which, 1)
    after: dict[str, Any] = {**rows, **wide, "grads": [torch.zeros_like(grad) for grad in rows["grads"]]}
    for clock in ("steps", "alphas"):
        after[clock] = [value.clone() for value in rows[clock]]
    where = {"processes": tensors.processes, "joins": tensors.joins}
    ramda(RamdaTensors(**after, **where), dataclasses.replace(numbers, lr=0.0), **flags)


def _advance(step: Tensor, alpha: Tensor, lr: float | Tensor) -> tuple[Tensor, Tensor]:
    """Advance t and alpha; return s and alpha ([] float64)."""
    step += 1
    beta = step.double().sqrt()
    rate = (lr.to(beta).reshape(()) if isinstance(lr, Tensor) else torch.full_like(beta, lr)) * beta
    alpha += rate
    return rate, alpha


def _cube_root(square: Tensor) -> Tensor:
    """Of numbers >= 0; no gradient is NaN at 0."""
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).pow(1 / 3))


def _single_tensor_ramda(tensors: RamdaTensors, numbers: RamdaNumbers) -> None:
    momentum = numbers.momentum
    for i, (param, dual, square) in enumerate(zip(tensors.params, tensors.duals, tensors.squares, strict=True)):
        rate, alpha = (x.to(dual) for x in _advance(tensors.steps[i], tensors.alphas[i], numbers.lr))
        grad = tensors.grads[i].to(dual)
        dual.add_((-rate if numbers.maximize else rate) * grad)
        square.add_(rate * grad * grad)
        metric = _cube_root(square) + numbers.eps
        x = tensors.anchors[i] - dual / metric
        if tensors.strengths[i]:
            x = metric_point(x, metric, tensors.layouts[i], alpha * tensors.strengths[i], numbers.prox)
        param.copy_(x if momentum == 1 else (1 - momentum) * param.to(x) + momentum * x)


def _multi_tensor_ramda(tensors: RamdaTensors, numbers: RamdaNumbers) -> None:
    params, duals, squares, momentum = tensors.params, tensors.duals, tensors.squares, numbers.momentum
    dtype = duals[0].dtype
    scalars = [_advance(*clock, numbers.lr) for clock in zip(tensors.steps, tensors.alphas, strict=True)]
    rates, alphas = ([x.to(duals[0]) for x in column] for column in zip(*scalars, strict=True))
    grads = [grad.to(dtype) for grad in tensors.grads]
    weighted = torch._foreach_mul(grads, rates)
    torch._foreach_addcmul_(squares, weighted, grads)
    (torch._foreach_sub_ if numbers.maximize else torch._foreach_add_)(duals, weighted)
    metrics = torch._foreach_pow(squares, 1 / 3)
    torch._foreach_add_(metrics, numbers.eps)
    xs = list(torch._foreach_sub(tensors.anchors, torch._foreach_div(duals, metrics)))
    thresholds = [alpha * strength for alpha, strength in zip(alphas, tensors.strengths, strict=True)]
    across = across_of(tensors)
    if across is not None:
        xs = metric_parts(xs, list(metrics), tensors.layouts, thresholds, numbers.prox, across)
    for i, strength in enumerate(tensors.strengths if across is None else ()):
        if strength:
            xs[i] = metric_point(xs[i], metrics[i], tensors.layouts[i], thresholds[i], numbers.prox)
    if momentum != 1:
        torch._foreach_mul_(xs, momentum)
        torch._foreach_add_(xs, torch._foreach_mul([param.to(dtype) for param in params], 1 - momentum))
    torch._foreach_copy_(params, xs)
