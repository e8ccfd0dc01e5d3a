"""RMDA, regularized modernized dual averaging (Huang & Lee, ICLR 2022, arXiv 2112.02612)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sparse_accel import ops
from sparse_accel.groups import GroupLayout
from sparse_accel.penalties import Penalty

from ._base import ProximalOptimizer
from ._batch import Batch, check_fraction, state_dtype
from ._docs import CAPTURABLE, shared_docs
from ._prox import proximal_point

__all__ = ["RMDA", "StepNumbers", "StepTensors", "rmda"]


@shared_docs(capturable=CAPTURABLE + " :meth:`restart` has to come before it.")
class RMDA(ProximalOptimizer):
    r"""Regularized dual averaging with momentum: trains to structured sparsity, and finds the right zeros.

    Within a stage, with :math:`W_0` the weights at its start and :math:`V` the weighted sum of its gradients
    (Algorithm 1 of the paper):

    .. math::
        t \mathrel{+}= 1,\quad \beta = \sqrt t,\quad s = \mathrm{lr}\cdot\beta,\quad \alpha \mathrel{+}= s,\quad
        V \mathrel{+}= s \nabla f,\quad
        \tilde W = \mathrm{prox}_{(\alpha/\beta)\,\psi}(W_0 - V/\beta),\quad W = (1-c)\,W + c\,\tilde W

    with :math:`\psi` the penalty and :math:`c` the momentum. With c < 1 the weights only decay towards a zero group:
    exact zeros are those of the proximal iterate :math:`\tilde W`, which :meth:`proximal_parameters` lends and
    :meth:`finalize_` keeps. A changed learning rate alone never ends a stage; :meth:`restart` does, and so does
    :class:`sparse_accel.lr_scheduler.MultiStageLR`.

    Args:
        {params}
        {lr}
        momentum: c in (0, 1], the share of the new point: 1 takes the proximal iterate itself. (Torch's momentum is
            the share of the old; give ``cycle_momentum=False`` to its cyclic schedulers.)
        {penalty}
        {maximize}
        foreach: use torch's multi-tensor ops.
        fused: use one native op per group, the default. It takes the scale and overflow flag of
            ``torch.amp.GradScaler`` on the device. ``foreach=False`` or ``fused=False`` takes a loop over plain
            tensor ops.
        {capturable}
        {differentiable}

    {raises}

    State per parameter: ``step`` ``[]`` float32 and ``alpha`` ``[]`` float64 of the stage; ``point``
    (:math:`X = W_0 - V/\beta`, in place of V because a step then moves less memory) and ``anchor`` (:math:`W_0`) of
    the parameter's shape and strides, float32 (float64 for float64 parameters). Float32 has the precision of
    float32 SGD: of lr times a gradient, what lies below half an ulp of the weight is lost.

    Example:
        >>> import sparse_accel as sa
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> opt = sa.RMDA(sa.param_groups(model, sa.GroupLasso(1e-3, by="input")), lr=0.1, momentum=0.1)
        >>> loss = model(torch.ones(4, 8)).square().mean()
        >>> loss.backward()
        >>> opt.step()
        >>> with opt.proximal_parameters():
        ...     output = model(torch.ones(4, 8))
        >>> opt.finalize_()
    """

    _group_defaults: ClassVar = {**ProximalOptimizer._group_defaults, "restart": False, "momentum_ramp": None}
    _scalar_state: ClassVar = {"step": torch.float32, "alpha": torch.float64}
    _tensor_state: ClassVar[tuple[str, ...]] = ("point", "anchor")
    _weights: ClassVar[tuple[str, ...]] = ("point", "anchor")  # state that a stage starts at the weights, not at zero

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        momentum: float = 0.1,
        *,
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
            "penalty": penalty,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_fraction("momentum", group["momentum"])

    def restart(self) -> None:
        """End the stage: the next step starts a new one at the weights as they are then (V, alpha and t zero).

        Until that step the proximal iterate is still that of the finished stage. The request is part of
        ``state_dict()`` (entry ``"restart"`` of each group).
        """
        for group in self.param_groups:
            group["restart"] = True

    def _begin(self, group: dict[str, Any]) -> None:
        if group["restart"]:
            states = [(param, self.state[param]) for param in group["params"] if "anchor" in self.state.get(param, {})]
            with torch.no_grad():
                for param, state in states:
                    for key in self._weights:
                        state[key].copy_(torch.view_as_real(param) if param.is_complex() else param)
                    for key in (*self._tensor_state, *self._scalar_state):
                        if key not in self._weights:
                            state[key].zero_()
            group["restart"] = False
        if group["momentum_ramp"] is not None:
            group["momentum_ramp"] += 1

    @staticmethod
    def _momentum(group: dict[str, Any]) -> float:
        """c of this step, on the ramp after the last stage if there is one."""
        ramp = group["momentum_ramp"]
        return float(group["momentum"] if ramp is None else min(group["momentum"] * ramp**0.5, 1.0))

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        for param, work in zip(batch.params, batch.work, strict=True):
            state = self.state[param]
            if "step" not in state:
                anchor = work.detach().to(state_dtype(work), copy=True, memory_format=torch.preserve_format)
                state.update(self._new_scalars(param), point=anchor.clone(), anchor=anchor)
        points, anchors, steps, alphas = self._tensor_lists(batch)
        tensors = StepTensors(batch.work, batch.grads, points, anchors, steps, alphas, batch.layouts, batch.strengths)
        rmda(
            tensors,
            StepNumbers(group["lr"], self._momentum(group), self._prox_name(group), group["maximize"]),
            foreach=group["foreach"],
            fused=self._is_fused(group),
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
        )

    def _write_proximal(self, backup: dict[Tensor, Tensor] | None) -> None:
        # A step from t - 1 with lr = 0, momentum 1 and the anchor at X leaves X and alpha, and has the beta of the last
        # step: it gives the proximal iterate of that step by the code of the step, bit by bit.
        for group in self.param_groups:
            for batch in self._gather(group, need_grad=False):
                points, _, steps, alphas = self._tensor_lists(batch)
                if backup is not None:
                    backup.update((param, param.detach().clone()) for param in batch.params)
                grads = [torch.zeros_like(work) for work in batch.work]
                at = [point.clone() for point in points]
                before = [(step - 1).clamp_(min=0) for step in steps]
                tensors = StepTensors(batch.work, grads, at, points, before, alphas, batch.layouts, batch.strengths)
                numbers = StepNumbers(0.0, 1.0, self._prox_name(group))
                rmda(tensors, numbers, foreach=group["foreach"], fused=self._is_fused(group))
                batch.write_back()


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
    """

    params: list[Tensor]
    grads: list[Tensor]
    points: list[Tensor]
    anchors: list[Tensor]
    steps: list[Tensor]
    alphas: list[Tensor]
    layouts: Sequence[GroupLayout]
    strengths: Sequence[float]


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

    Example:
        >>> w, g, x, w0 = torch.ones(2), torch.ones(2), torch.ones(2), torch.ones(2)
        >>> t, alpha = torch.zeros(()), torch.zeros((), dtype=torch.float64)
        >>> tensors = StepTensors([w], [g], [x], [w0], [t], [alpha], [GroupLayout(1, 2, 1)], strengths=[0.0])
        >>> rmda(tensors, StepNumbers(lr=0.5, momentum=1.0))
        >>> w, t
        (tensor([0.5000, 0.5000]), tensor(1.))
    """
    if not tensors.params:
        return
    if isinstance(numbers.lr, Tensor) and numbers.lr.is_cpu and not numbers.lr.requires_grad:
        numbers = dataclasses.replace(numbers, lr=numbers.lr.item())
    if fused if fused is not None else foreach is None:
        _fused_rmda(tensors, numbers, grad_scale, found_inf)
    elif grad_scale is not None or found_inf is not None:
        raise RuntimeError("grad_scale and found_inf: expected fused=True")
    else:
        (_multi_tensor_rmda if foreach else _single_tensor_rmda)(tensors, numbers)


def _fused_rmda(
    tensors: StepTensors, numbers: StepNumbers, grad_scale: Tensor | None, found_inf: Tensor | None
) -> None:
    device = tensors.params[0].device
    ops.rmda_step_(
        tensors.params,
        tensors.grads,
        tensors.points,
        tensors.anchors,
        tensors.steps,
        tensors.alphas,
        tensors.layouts,
        prox=numbers.prox,
        strengths=tensors.strengths,
        lr=numbers.lr,
        momentum=numbers.momentum,
        maximize=numbers.maximize,
        grad_scale=None if grad_scale is None else grad_scale.to(device),
        found_inf=None if found_inf is None else found_inf.to(device),
    )


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
    xs = list(points)
    for i, strength in enumerate(tensors.strengths):
        if strength:
            xs[i] = proximal_point(xs[i], tensors.layouts[i], ratios[i] * strength, numbers.prox)
    if momentum != 1:
        xs = list(torch._foreach_mul(xs, momentum))
        torch._foreach_add_(xs, torch._foreach_mul([param.to(dtype) for param in params], 1 - momentum))
    torch._foreach_copy_(params, xs)
