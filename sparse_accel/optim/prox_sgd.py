"""ProxSGD, proximal stochastic gradient descent with momentum (Yang et al., ICLR 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sparse_accel.groups import GroupLayout
from sparse_accel.penalties import Penalty
from sparse_accel.sharding import sharded_as

from ._base import ProximalOptimizer
from ._batch import Batch, check_finite, check_fraction, rates, state_dtype
from ._docs import shared_docs
from .steps.prox_sgd import SgdNumbers, SgdTensors, prox_sgd_step

__all__ = ["ProxSGD", "prox_sgd"]


@shared_docs()
class ProxSGD(ProximalOptimizer):
    r"""Proximal SGD with momentum, the baseline of :class:`sparse_accel.RMDA`.

    .. math::
        m = (1-\rho)\,m + \rho \nabla f,\qquad W = \mathrm{prox}_{\mathrm{lr}\,\psi}(W - \mathrm{lr}\cdot m)

    with :math:`\psi` the penalty and m zero at first. Source: Yang, Yuan, Chatzimichailidis, van Sloun, Lei and
    Chatzinotas, "ProxSGD: training structured neural networks under regularization and constraints", ICLR 2020.

    ``rho`` is the share of the new gradient, as in the paper: what torch calls momentum is ``1 - rho``
    (``torch.optim.SGD(momentum=0.9, dampening=0.9)`` corresponds to ``rho=0.1``). ``rho=1`` is without momentum.

    Args:
        {params}
        {lr}
        rho: in (0, 1].
        {penalty}
        {weight_decay}
        {maximize}
        foreach: use torch's multi-tensor ops with the native proximal operator.
        fused: use one native op per group, the default. It takes the scale and overflow flag of
            ``torch.amp.GradScaler`` on the device. ``foreach=False`` or ``fused=False`` takes a loop over plain
            tensor ops.
        {capturable}
        {differentiable}

    {raises}

    State per parameter: ``step`` ``[]`` float32 and ``momentum_buffer`` of the parameter's shape and strides,
    float32 (float64 for float64 parameters). The iterate is the proximal iterate: :meth:`proximal_parameters` and
    :meth:`finalize_` change nothing.

    Example:
        >>> import sparse_accel as sa
        >>> weight = torch.nn.Parameter(torch.tensor([[1.0, 0.1]]))
        >>> opt = sa.ProxSGD([weight], lr=0.5, penalty=sa.GroupLasso(0.4))
        >>> weight.grad = torch.zeros_like(weight)
        >>> opt.step()
        >>> weight.detach()
        tensor([[0.8000, 0.0000]])
    """

    _group_defaults: ClassVar = {**ProximalOptimizer._group_defaults, "weight_decay": 0.0}
    _spans_processes: ClassVar = True
    _op: ClassVar = "prox_sgd_step_"
    _tensor_state: ClassVar = ("momentum_buffer",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        rho: float = 0.1,
        *,
        penalty: Penalty | None = None,
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "rho": rho,
            "penalty": penalty,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_fraction("rho", group["rho"])
        check_finite("weight_decay", group["weight_decay"], 0)

    def _op_numbers(self, group: dict[str, Any]) -> tuple[Any, ...] | None:
        return None if group["weight_decay"] else (group["rho"], group["maximize"])

    def _make_state(self, batch: Batch) -> None:
        for param, work in batch.without_state():
            state = self.state[param]
            if "step" not in state:
                buffer = torch.zeros_like(work, dtype=state_dtype(work), requires_grad=False)
                state.update(self._new_scalars(param), momentum_buffer=sharded_as(buffer, param))

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        self._make_state(batch)
        batch.add_decay(group, getattr(self, "grad_scale", None))
        momentum_buffers, steps = self._tensor_lists(batch)
        prox_sgd_step(
            SgdTensors(batch.work, batch.grads, momentum_buffers, steps, *batch.cuts()),
            SgdNumbers(group["lr"], group["rho"], self._prox_name(group), group["maximize"]),
            foreach=group["foreach"],
            fused=self._is_fused(group),
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
        )

    def _prox_metric(self, group: dict[str, Any], batch: Batch) -> tuple[list[Tensor] | None, list[Tensor]]:
        return None, rates(group["lr"], self._tensor_lists(batch)[-1])

    def _before_prox(self, group: dict[str, Any], batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        buffers, _ = self._tensor_lists(batch)
        lr, dtype = float(group["lr"]), buffers[0].dtype
        points = torch._foreach_add([work.to(dtype) for work in batch.work], buffers, alpha=-lr)
        return list(points), [torch.full((), lr, dtype=dtype, device=work.device) for work in batch.work]


def prox_sgd(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    steps: list[Tensor],
    layouts: Sequence[GroupLayout],
    *,
    strengths: Sequence[float],
    lr: float | Tensor,
    rho: float,
    prox: str = "soft",
    maximize: bool = False,
    foreach: bool | None = None,
    fused: bool | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    sizes: Sequence[int] = (),
    processes: Sequence[Any] = (),
) -> None:
    """One ProxSGD step for N tensors, in place; :class:`ProxSGD` has the formulas.

    Args:
        params: N dense tensors of one dtype and device.
        grads: of the shape and dtype of ``params``.
        momentum_buffers: float32 (float64 for float64 params), strides of ``params``.
        steps: ``[]`` float32 each, counted up.
        layouts: of the memory of ``params``.
        strengths: of the penalty, one number per tensor; 0 leaves a tensor unregularized.
        lr: step size.
        rho: in (0, 1].
        prox: ``"soft"`` or ``"hard"``.
        maximize: ascend instead.
        foreach: use torch's multi-tensor ops and the native proximal operator; False: plain ops in a loop.
        fused: use the native op of the whole step; default: if ``foreach`` is not given either.
        grad_scale: ``[]``, gradients are divided by it; fused only.
        found_inf: ``[]``, nothing changes where it is not zero; fused only.
        sizes: elements of a whole group, where the groups lie across processes.
        processes: the groups of processes across which they do. All of them take the step.

    Raises:
        RuntimeError: ``grad_scale`` or ``found_inf`` without the native op.

    Example:
        >>> w, m, t = torch.ones(2), torch.zeros(2), torch.zeros(())
        >>> prox_sgd([w], [torch.ones(2)], [m], [t], [GroupLayout(1, 2, 1)], strengths=[0.0], lr=0.5, rho=1.0)
        >>> w
        tensor([0.5000, 0.5000])
    """
    tensors = SgdTensors(params, grads, momentum_buffers, steps, layouts, strengths, sizes, processes)
    prox_sgd_step(
        tensors,
        SgdNumbers(lr, rho, prox, maximize),
        foreach=foreach,
        fused=fused,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )
