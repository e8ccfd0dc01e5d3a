"""RAMDA, regularized adaptive momentum dual averaging (Huang & Lee, NeurIPS 2024, arXiv 2403.14398)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sparse_accel import ops
from sparse_accel.groups import GroupLayout
from sparse_accel.penalties import Penalty

from ._base import ProximalOptimizer
from ._batch import Batch, state_dtype
from ._docs import CAPTURABLE, shared_docs
from ._prox import metric_point
from .rmda import RMDA

__all__ = ["RAMDA", "RamdaNumbers", "RamdaTensors", "ramda"]


@shared_docs(capturable=CAPTURABLE + " :meth:`restart` has to come before it.")
class RAMDA(RMDA):
    r"""Regularized dual averaging in an adaptive metric: :class:`sparse_accel.RMDA` for networks that want Adam.

    Within a stage, with :math:`W_0` the weights at its start (Algorithm 1 of the paper):

    .. math::
        t \mathrel{+}= 1,\quad s = \mathrm{lr}\sqrt t,\quad \alpha \mathrel{+}= s,\quad V \mathrel{+}= s \nabla f,\quad
        U \mathrel{+}= s (\nabla f)^2,\quad P = U^{1/3} + \epsilon

    .. math::
        \tilde W = \arg\min_w\; \langle V, w\rangle + \tfrac12 \langle w - W_0, P (w - W_0)\rangle + \alpha \psi(w),
        \quad W = (1-c)\,W + c\,\tilde W

    with :math:`\psi` the penalty and :math:`c` the momentum. The minimum is exact, by one scalar root per group
    (:mod:`sparse_accel.ops.metric_step`); the paper approaches it by proximal gradient steps. Stages, momentum and the
    proximal iterate :math:`\tilde W` are those of RMDA: :meth:`restart` or
    :class:`sparse_accel.lr_scheduler.MultiStageLR` ends a stage, :meth:`proximal_parameters` lends the exact zeros and
    :meth:`finalize_` keeps them.

    Args:
        {params}
        {lr}
        momentum: c in (0, 1], the share of the new point: 1 takes the proximal iterate itself. (Torch's momentum is
            the share of the old; give ``cycle_momentum=False`` to its cyclic schedulers.)
        eps: :math:`\epsilon` > 0, added to the cube root. A ``MultiStageLR`` multiplies it by its gamma at restarts.
        {penalty}
        {maximize}
        foreach: use torch's multi-tensor ops, and plain ones for the penalty.
        fused: use one native op per group, the default; on devices without kernels (neither CPU nor CUDA) the op is
            its plain twin. It takes the scale and overflow flag of ``torch.amp.GradScaler`` on the device.
            ``foreach=False`` or ``fused=False`` takes a loop over plain tensor ops.
        {capturable}
        {differentiable}

    {raises}

    State per parameter: ``step`` ``[]`` float32 and ``alpha`` ``[]`` float64 of the stage; ``dual`` (V), ``square`` (U)
    and ``anchor`` (:math:`W_0`) of the parameter's shape and strides, float32 (float64 for float64 parameters). Entries
    of a group besides the arguments: ``restart``, ``momentum_ramp`` and ``eps_scale``, by which the next restart
    multiplies eps.

    Example:
        >>> import sparse_accel as sa
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> opt = sa.RAMDA(sa.param_groups(model, sa.GroupLasso(1e-3, by="input")), lr=0.01, momentum=0.01)
        >>> loss = model(torch.ones(4, 8)).square().mean()
        >>> loss.backward()
        >>> opt.step()
        >>> with opt.proximal_parameters():
        ...     output = model(torch.ones(4, 8))
        >>> opt.finalize_()
    """

    _group_defaults: ClassVar = {**RMDA._group_defaults, "eps": 1e-6, "eps_scale": 1.0}
    _tensor_state: ClassVar = ("dual", "square", "anchor")
    _weights: ClassVar = ("anchor",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        momentum: float = 0.01,
        *,
        eps: float = 1e-6,
        penalty: Penalty | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "eps": eps,
            "penalty": penalty,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        ProximalOptimizer.__init__(self, params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if not (math.isfinite(group["eps"]) and group["eps"] > 0):
            raise ValueError(f"eps: expected a finite number > 0, got {group['eps']!r}")

    def _begin(self, group: dict[str, Any]) -> None:
        if group["restart"]:
            group["eps"] *= group["eps_scale"]
            group["eps_scale"] = 1.0
        super()._begin(group)

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        for param, work in zip(batch.params, batch.work, strict=True):
            state = self.state[param]
            if "step" not in state:
                anchor = work.detach().to(state_dtype(work), copy=True, memory_format=torch.preserve_format)
                zeros = {key: torch.zeros_like(anchor) for key in ("dual", "square")}
                state.update(self._new_scalars(param), **zeros, anchor=anchor)
        duals, squares, anchors, steps, alphas = self._tensor_lists(batch)
        tensors = RamdaTensors(
            batch.work, batch.grads, duals, squares, anchors, steps, alphas, batch.layouts, batch.strengths
        )
        ramda(
            tensors,
            RamdaNumbers(group["lr"], self._momentum(group), group["eps"], self._prox_name(group), group["maximize"]),
            foreach=group["foreach"],
            fused=self._is_fused(group),
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
        )

    def _write_proximal(self, backup: dict[Tensor, Tensor] | None) -> None:
        # A step with lr = 0, no gradient and momentum 1 leaves V, U and alpha: it gives the proximal iterate of the
        # last step by the code of the step, bit by bit.
        for group in self.param_groups:
            for batch in self._gather(group, need_grad=False):
                duals, squares, anchors, steps, alphas = self._tensor_lists(batch)
                if backup is not None:
                    backup.update((param, param.detach().clone()) for param in batch.params)
                grads = [torch.zeros_like(work) for work in batch.work]
                tensors = RamdaTensors(
                    batch.work,
                    grads,
                    [dual.clone() for dual in duals],
                    [square.clone() for square in squares],
                    anchors,
                    [step.clone() for step in steps],
                    [alpha.clone() for alpha in alphas],
                    batch.layouts,
                    batch.strengths,
                )
                numbers = RamdaNumbers(0.0, 1.0, group["eps"], self._prox_name(group))
                ramda(tensors, numbers, foreach=group["foreach"], fused=self._is_fused(group))
                batch.write_back()


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
    if not tensors.params:
        return
    if isinstance(numbers.lr, Tensor) and numbers.lr.is_cpu and not numbers.lr.requires_grad:
        numbers = dataclasses.replace(numbers, lr=numbers.lr.item())
    if fused if fused is not None else foreach is None:
        device = tensors.params[0].device
        ops.ramda_step_(
            tensors.params,
            tensors.grads,
            tensors.duals,
            tensors.squares,
            tensors.anchors,
            tensors.steps,
            tensors.alphas,
            tensors.layouts,
            prox=numbers.prox,
            strengths=tensors.strengths,
            lr=numbers.lr,
            momentum=numbers.momentum,
            eps=numbers.eps,
            maximize=numbers.maximize,
            grad_scale=None if grad_scale is None else grad_scale.to(device),
            found_inf=None if found_inf is None else found_inf.to(device),
        )
    elif grad_scale is not None or found_inf is not None:
        raise RuntimeError("grad_scale and found_inf: expected fused=True")
    else:
        (_multi_tensor_ramda if foreach else _single_tensor_ramda)(tensors, numbers)


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
    for i, strength in enumerate(tensors.strengths):
        if strength:
            xs[i] = metric_point(xs[i], metrics[i], tensors.layouts[i], alphas[i] * strength, numbers.prox)
    if momentum != 1:
        torch._foreach_mul_(xs, momentum)
        torch._foreach_add_(xs, torch._foreach_mul([param.to(dtype) for param in params], 1 - momentum))
    torch._foreach_copy_(params, xs)
