"""RMDA, regularized modernized dual averaging (Huang & Lee, ICLR 2022, arXiv 2112.02612)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sparse_accel.penalties import Penalty
from sparse_accel.sharding import sharded_as

from ._base import ProximalOptimizer
from ._batch import Batch, check_finite, check_fraction, state_dtype
from ._docs import CAPTURABLE, shared_docs
from .common import rounding
from .common.projection import held_penalty, take_constraint
from .steps.rmda import StepNumbers, StepTensors, rmda, rmda_rounded

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
        {weight_decay}
        {maximize}
        foreach: use torch's multi-tensor ops.
        fused: use one native op per group, the default. It takes the scale and overflow flag of
            ``torch.amp.GradScaler`` on the device. ``foreach=False`` or ``fused=False`` takes a loop over plain
            tensor ops.
        {capturable}
        {differentiable}
        {state_dtype}
        {rounding_seed}

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

    _group_defaults: ClassVar = {
        **ProximalOptimizer._group_defaults,
        "restart": False,
        "momentum_ramp": None,
        "weight_decay": 0.0,
        **rounding.DEFAULTS,
    }
    _spans_processes: ClassVar = True
    _groups_follow: ClassVar = True
    _op: ClassVar = "rmda_step_"
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
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        state_dtype: torch.dtype | None = None,
        rounding_seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "penalty": penalty,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": differentiable,
            "state_dtype": state_dtype,
            "rounding_seed": rounding_seed,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_fraction("momentum", group["momentum"])
        check_finite("weight_decay", group["weight_decay"], 0)
        rounding.check_state_dtype(group, self.param_groups)

    @staticmethod
    def _is_apart(state: dict[str, Any]) -> bool:
        return "anchor" in state

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
        if group[rounding.STATE_DTYPE] is not None:
            group[rounding.CLOCK] += 1

    @classmethod
    def _momentum(cls, group: dict[str, Any]) -> float:
        """c of the step's op: under a constraint, or a penalty of stages, the mixture comes after the operator."""
        return 1.0 if held_penalty(group) else cls._share(group)

    @staticmethod
    def _share(group: dict[str, Any]) -> float:
        """c of this step, on the ramp after the last stage if there is one."""
        ramp = group["momentum_ramp"]
        return float(group["momentum"] if ramp is None else min(group["momentum"] * ramp**0.5, 1.0))

    @staticmethod
    def _stands_still(group: dict[str, Any], steps: list[Tensor]) -> bool:
        """Whether the step size is 0, known without a synchronization; of a first step then only the clocks count.

        So torch.distributed.checkpoint has state made before it loads one; a mixture of the weights with themselves
        would round them.
        """
        lr = group["lr"]
        if (isinstance(lr, Tensor) and not lr.is_cpu) or lr != 0:
            return False
        for step in steps:
            step += 1
        return True

    def _op_numbers(self, group: dict[str, Any]) -> tuple[Any, ...] | None:
        return None if group["weight_decay"] or self._low else (self._share(group), group["maximize"])

    def _make_state(self, batch: Batch) -> None:
        for param, work in batch.without_state():
            state = self.state[param]
            if "step" not in state:
                anchor = work.detach().to(state_dtype(work, self._low), copy=True, memory_format=torch.preserve_format)
                starts = {"point": sharded_as(anchor.clone(), param), "anchor": sharded_as(anchor, param)}
                state.update(self._new_scalars(param), **starts)

    def _is_fresh(self, batch: Batch) -> bool:
        """Whether this is the first step of all of the batch's parameters."""
        return batch.fresh or (batch.lists is None and not any("step" in self.state[param] for param in batch.params))

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        fresh = self._is_fresh(batch)
        self._make_state(batch)
        batch.add_decay(group, getattr(self, "grad_scale", None))
        points, anchors, steps, alphas = self._tensor_lists(batch)
        if fresh and self._stands_still(group, steps):
            return
        tensors = StepTensors(batch.work, batch.grads, points, anchors, steps, alphas, *batch.cuts())
        numbers = StepNumbers(group["lr"], self._momentum(group), self._prox_name(group), group["maximize"])
        flags = {
            "foreach": group["foreach"],
            "fused": self._is_fused(group),
            "grad_scale": getattr(self, "grad_scale", None),
            "found_inf": getattr(self, "found_inf", None),
        }
        if not points or points[0].dtype != torch.bfloat16:
            rmda(tensors, numbers, **flags)
            return
        noise = rounding.Rounding(group)
        for part in rounding.parts(points, batch.is_across):
            rmda_rounded(tensors, numbers, part, noise, flags)

    def _before_prox(self, group: dict[str, Any], batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        points, _, steps, alphas = rounding.widened(self._tensor_lists(batch))
        return points, [alpha / step.to(alpha).sqrt() for alpha, step in zip(alphas, steps, strict=True)]

    def _prox_metric(self, group: dict[str, Any], batch: Batch) -> tuple[list[Tensor] | None, list[Tensor]]:
        _, _, steps, alphas = self._tensor_lists(batch)
        return None, [alpha / step.to(alpha).clamp(min=1).sqrt() for alpha, step in zip(alphas, steps, strict=True)]

    def _write_proximal(self, backup: dict[Tensor, Tensor] | None) -> None:
        # A step from t - 1 with lr = 0, momentum 1 and the anchor at X leaves X and alpha, and has the beta of the last
        # step: it gives the proximal iterate of that step by the code of the step, bit by bit.
        for group in self.param_groups:
            for batch in (one.copy() for one in self._gather(group, need_grad=False)):
                held = take_constraint(group, batch, self)
                points, _, steps, alphas = rounding.widened(self._tensor_lists(batch))
                if backup is not None:
                    backup.update((param, param.detach().clone()) for param in batch.params)
                grads = [torch.zeros_like(work) for work in batch.work]
                at = [point.clone() for point in points]
                before = [(step - 1).clamp_(min=0) for step in steps]
                tensors = StepTensors(batch.work, grads, at, points, before, alphas, *batch.cuts())
                numbers = StepNumbers(0.0, 1.0, self._prox_name(group))
                rmda(tensors, numbers, foreach=group["foreach"], fused=self._is_fused(group))
                if held is not None:
                    held.operate(self, group, batch)
                batch.write_back()
