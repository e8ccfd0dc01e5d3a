"""RAMDA, regularized adaptive momentum dual averaging (Huang & Lee, NeurIPS 2024, arXiv 2403.14398)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sparse_accel.penalties import Penalty
from sparse_accel.sharding import sharded_as

from ._base import ProximalOptimizer
from ._batch import Batch, state_dtype
from ._docs import CAPTURABLE, shared_docs
from .common import rounding
from .common.projection import take_constraint
from .rmda import RMDA
from .steps.ramda import RamdaNumbers, RamdaTensors, ramda, ramda_rounded

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
        weight_decay: this much times a parameter joins its gradient, and the metric scales it like all of that.
        {maximize}
        foreach: use torch's multi-tensor ops, and plain ones for the penalty.
        fused: use one native op per group, the default; on devices without kernels (neither CPU nor CUDA) the op is
            its plain twin. It takes the scale and overflow flag of ``torch.amp.GradScaler`` on the device.
            ``foreach=False`` or ``fused=False`` takes a loop over plain tensor ops.
        {capturable}
        {differentiable}
        {state_dtype}
        {rounding_seed}

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
    _op: ClassVar = "ramda_step_"
    _in_metric: ClassVar = True
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
            "eps": eps,
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

    def _op_numbers(self, group: dict[str, Any]) -> tuple[Any, ...] | None:
        plain = not group["weight_decay"] and not self._low
        return (self._share(group), group["eps"], group["maximize"]) if plain else None

    def _make_state(self, batch: Batch) -> None:
        for param, work in batch.without_state():
            state = self.state[param]
            if "step" not in state:
                anchor = work.detach().to(state_dtype(work, self._low), copy=True, memory_format=torch.preserve_format)
                zeros = {key: sharded_as(torch.zeros_like(anchor), param) for key in ("dual", "square")}
                state.update(self._new_scalars(param), **zeros, anchor=sharded_as(anchor, param))

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        fresh = self._is_fresh(batch)
        self._make_state(batch)
        batch.add_decay(group, getattr(self, "grad_scale", None))
        duals, squares, anchors, steps, alphas = self._tensor_lists(batch)
        if fresh and self._stands_still(group, steps):
            return
        tensors = RamdaTensors(batch.work, batch.grads, duals, squares, anchors, steps, alphas, *batch.cuts())
        prox = self._prox_name(group)
        numbers = RamdaNumbers(group["lr"], self._momentum(group), group["eps"], prox, group["maximize"])
        flags = {
            "foreach": group["foreach"],
            "fused": self._is_fused(group),
            "grad_scale": getattr(self, "grad_scale", None),
            "found_inf": getattr(self, "found_inf", None),
        }
        if not duals or duals[0].dtype != torch.bfloat16:
            ramda(tensors, numbers, **flags)
            return
        noise = rounding.Rounding(group)
        for part in rounding.parts(duals, batch.is_across):
            ramda_rounded(tensors, numbers, part, noise, flags)

    def _before_prox(self, group: dict[str, Any], batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        duals, squares, anchors, _, alphas = rounding.widened(self._tensor_lists(batch))
        metrics = torch._foreach_add(torch._foreach_pow(squares, 1 / 3), group["eps"])
        return list(torch._foreach_sub(torch._foreach_mul(metrics, anchors), duals)), alphas

    def _prox_metric(self, group: dict[str, Any], batch: Batch) -> tuple[list[Tensor] | None, list[Tensor]]:
        _, squares, _, _, alphas = rounding.widened(self._tensor_lists(batch))
        roots = [square.double().pow(1 / 3).to(square.dtype) for square in squares]
        return list(torch._foreach_add(roots, group["eps"])), list(alphas)

    def _write_proximal(self, backup: dict[Tensor, Tensor] | None) -> None:
        # A step with lr = 0, no gradient and momentum 1 leaves V, U and alpha: it gives the proximal iterate of the
        # last step by the code of the step, bit by bit.
        for group in self.param_groups:
            for batch in (one.copy() for one in self._gather(group, need_grad=False)):
                held = take_constraint(group, batch, self)
                duals, squares, anchors, steps, alphas = rounding.widened(self._tensor_lists(batch))
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
                    *batch.cuts(),
                )
                numbers = RamdaNumbers(0.0, 1.0, group["eps"], self._prox_name(group))
                ramda(tensors, numbers, foreach=group["foreach"], fused=self._is_fused(group))
                if held is not None:
                    held.operate(self, group, batch)
                batch.write_back()
