"""ProxSGD, proximal stochastic gradient descent with momentum (Yang et al., ICLR 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sparse_accel import ops
from sparse_accel.groups import GroupLayout
from sparse_accel.penalties import Penalty
from sparse_accel.sharding import sharded_as

from ._base import ProximalOptimizer, implementation_is_open
from ._batch import Batch, check_finite, check_fraction, state_dtype
from ._docs import shared_docs
from .steps.prox import proximal_parts, proximal_point

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
        foreach: use torch's multi-tensor ops with the native proximal operator, the default; False takes a loop
            over plain tensor ops.
        fused: the same as ``foreach``, and takes the scale and overflow flag of ``torch.amp.GradScaler`` on the
            device, without a host synchronization.
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

    @staticmethod
    def _is_fused(group: dict[str, Any]) -> bool:
        return bool(group["fused"])

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
        multi_tensor = group["foreach"] or group["fused"]
        if implementation_is_open(group):
            multi_tensor = not group["differentiable"]
        prox_sgd(
            batch.work,
            batch.grads,
            momentum_buffers,
            steps,
            batch.layouts,
            foreach=bool(multi_tensor),
            prox=self._prox_name(group),
            strengths=batch.strengths,
            lr=group["lr"],
            rho=group["rho"],
            maximize=group["maximize"],
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
            sizes=batch.sizes,
            processes=batch.processes,
        )

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
    foreach: bool = True,
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
        grad_scale: ``[]``, gradients are divided by it.
        found_inf: ``[]``, nothing changes where it is not zero.
        sizes: elements of a whole group, where the groups lie across processes.
        processes: the groups of processes across which they do. All of them take the step.

    Example:
        >>> w, m, t = torch.ones(2), torch.zeros(2), torch.zeros(())
        >>> prox_sgd([w], [torch.ones(2)], [m], [t], [GroupLayout(1, 2, 1)], strengths=[0.0], lr=0.5, rho=1.0)
        >>> w
        tensor([0.5000, 0.5000])
    """
    if not params:
        return
    dtype, device = momentum_buffers[0].dtype, params[0].device
    if isinstance(lr, Tensor):  # the value of one on the CPU costs no synchronization, one on the device stays there
        lr = lr.item() if lr.is_cpu and not lr.requires_grad else lr.reshape(()).to(device, dtype)
    scaled = [(-grad if maximize else grad).to(dtype) for grad in grads]
    if grad_scale is not None:
        scaled = [grad / grad_scale.to(device, dtype) for grad in scaled]
    if found_inf is None:
        torch._foreach_add_(steps, 1)
        _step(params, scaled, momentum_buffers, layouts, strengths, lr, rho, prox, foreach, sizes, processes)
        return
    skip = found_inf.to(device).reshape(()) != 0
    torch._foreach_add_(steps, [(~skip).to(steps[0])] * len(steps))  # a list: one tensor may be read on the host
    scaled = [torch.where(skip, 0.0, grad) for grad in scaled]
    before = [param.detach().clone() for param in params]
    rho_or_zero = torch.where(skip, 0.0, rho).to(dtype)
    _step(params, scaled, momentum_buffers, layouts, strengths, lr, rho_or_zero, prox, foreach, sizes, processes)
    torch._foreach_copy_(params, [torch.where(skip, old, new) for old, new in zip(before, params, strict=True)])


def _step(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    layouts: Sequence[GroupLayout],
    strengths: Sequence[float],
    lr: float | Tensor,
    rho: float | Tensor,
    prox: str,
    foreach: bool,
    sizes: Sequence[int],
    processes: Sequence[Any],
) -> None:
    """The formulas, on gradients of the buffers' dtype. The native operator takes its threshold as a number: an lr
    on the device goes with the plain one."""
    dtype = momentum_buffers[0].dtype
    penalized = [i for i, strength in enumerate(strengths) if strength]
    if foreach or processes:
        torch._foreach_mul_(momentum_buffers, 1 - rho)
        if isinstance(rho, Tensor):
            torch._foreach_add_(momentum_buffers, torch._foreach_mul(grads, rho))
        else:
            torch._foreach_add_(momentum_buffers, grads, alpha=rho)
        xs = params if params[0].dtype == dtype else [param.to(dtype) for param in params]
        if isinstance(lr, Tensor):
            torch._foreach_sub_(xs, torch._foreach_mul(momentum_buffers, lr))
        else:
            torch._foreach_add_(xs, momentum_buffers, alpha=-lr)
        if processes:
            rate = lr if isinstance(lr, Tensor) else torch.full((), lr, dtype=dtype, device=params[0].device)
            thresholds = [rate * strength for strength in strengths]
            torch._foreach_copy_(xs, proximal_parts(xs, layouts, thresholds, prox, sizes, processes))
        elif isinstance(lr, Tensor):
            for i in penalized:
                xs[i].copy_(proximal_point(xs[i], layouts[i], lr * strengths[i], prox))
        elif penalized:
            numbers = [lr * strengths[i] for i in penalized]
            ops.prox_([xs[i] for i in penalized], [layouts[i] for i in penalized], numbers, prox=prox)
        if xs is not params:
            torch._foreach_copy_(params, xs)
        return
    for i, (param, buffer) in enumerate(zip(params, momentum_buffers, strict=True)):
        buffer.mul_(1 - rho).add_(grads[i] * rho)
        x = param.to(dtype) - buffer * lr
        if strengths[i]:
            threshold = lr * strengths[i]
            if not isinstance(threshold, Tensor):
                threshold = torch.full((), threshold, dtype=dtype, device=x.device)  # a fill, no transfer
            x = proximal_point(x, layouts[i], threshold, prox)
        param.copy_(x)
