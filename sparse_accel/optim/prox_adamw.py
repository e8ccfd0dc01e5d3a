"""ProxAdamW: AdamW with a penalty, by the exact proximal operator in AdamW's own metric."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sparse_accel.penalties import Penalty
from sparse_accel.sharding import sharded_as

from ._base import ProximalOptimizer
from ._batch import Batch, check_finite, rates, state_dtype
from ._docs import shared_docs
from .steps.prox_adamw import AdamwNumbers, AdamwTensors, prox_adamw

__all__ = ["AdamwNumbers", "AdamwTensors", "ProxAdamW", "prox_adamw"]


@shared_docs()
class ProxAdamW(ProximalOptimizer):
    r"""AdamW with a penalty: its step, then the proximal operator in the metric that the step divides by.

    .. math::
        x = (1 - \mathrm{lr}\,\lambda)\,W - \frac{\mathrm{lr}}{1-\beta_1^t}\,\frac{m}{P},\quad
        P = \sqrt{\frac{v}{1-\beta_2^t}} + \epsilon,\quad
        W = \arg\min_w\; \tfrac12 \langle w - x, P (w - x)\rangle + \mathrm{lr}\,\psi(w)

    with m and v the running means of the gradient and of its square, as in ``torch.optim.AdamW`` (Loshchilov & Hutter,
    "Decoupled weight decay regularization", ICLR 2019), and :math:`\psi` the penalty. This is the AdamW of ProxGen
    (Yun, Lozano & Yang, "Adaptive proximal gradient methods for structured neural networks", NeurIPS 2021) and ProxSSI
    (Deleu & Bengio, "Structured sparsity inducing adaptive optimizers for deep learning", 2021). The minimum is exact,
    by one scalar root per group (:mod:`sparse_accel.ops.metric_step`). Without a penalty it is AdamW.

    It is the baseline of :class:`sparse_accel.RAMDA`: zeros come and go with the gradients' noise.

    Args:
        {params}
        {lr}
        betas: decays of m and v, each in [0, 1).
        eps: :math:`\epsilon` >= 0.
        weight_decay: decoupled decay :math:`\lambda` >= 0.
        {penalty}
        {maximize}
        foreach: use torch's multi-tensor ops, and plain ones for the penalty.
        fused: use one native op per group, the default; on devices without kernels (neither CPU nor CUDA) the op is
            its plain twin. It takes the scale and overflow flag of ``torch.amp.GradScaler`` on the device.
            ``foreach=False`` or ``fused=False`` takes a loop over plain tensor ops.
        {capturable}
        {differentiable}

    {raises}

    State per parameter: ``step`` ``[]`` float32, ``exp_avg`` (m) and ``exp_avg_sq`` (v) of the parameter's shape and
    strides, float32 (float64 for float64 parameters): the names of ``torch.optim.AdamW``. The iterate is the proximal
    iterate: :meth:`proximal_parameters` and :meth:`finalize_` change nothing.

    Example:
        >>> import sparse_accel as sa
        >>> weight = torch.nn.Parameter(torch.tensor([[1.0, 0.1]]))
        >>> opt = sa.ProxAdamW([weight], lr=0.25, weight_decay=0.0, penalty=sa.GroupLasso(1.0))
        >>> weight.grad = torch.ones_like(weight)
        >>> opt.step()
        >>> weight.detach()
        tensor([[0.5000, 0.0000]])
    """

    _group_defaults: ClassVar = {
        **ProximalOptimizer._group_defaults,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 1e-2,
    }
    _op: ClassVar = "prox_adamw_step_"
    _in_metric: ClassVar = True
    _spans_processes: ClassVar = True
    _tensor_state: ClassVar = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
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
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
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
        betas = group["betas"]
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas: expected two numbers in [0, 1), got {betas!r}")
        check_finite("eps", group["eps"], 0)
        check_finite("weight_decay", group["weight_decay"], 0)

    def _op_numbers(self, group: dict[str, Any]) -> tuple[Any, ...] | None:
        return *group["betas"], group["eps"], group["weight_decay"], group["maximize"]

    def _make_state(self, batch: Batch) -> None:
        for param, work in batch.without_state():
            state = self.state[param]
            if "step" not in state:
                zeros = torch.zeros_like(work, dtype=state_dtype(work), requires_grad=False)
                averages = {"exp_avg": sharded_as(zeros, param), "exp_avg_sq": sharded_as(zeros.clone(), param)}
                state.update(self._new_scalars(param), **averages)

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        self._make_state(batch)
        exp_avgs, exp_avg_sqs, steps = self._tensor_lists(batch)
        beta1, beta2 = group["betas"]
        prox_adamw(
            AdamwTensors(batch.work, batch.grads, exp_avgs, exp_avg_sqs, steps, *batch.cuts()),
            AdamwNumbers(
                group["lr"],
                beta1,
                beta2,
                group["eps"],
                group["weight_decay"],
                self._prox_name(group),
                group["maximize"],
            ),
            foreach=group["foreach"],
            fused=self._is_fused(group),
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
        )

    def _before_prox(self, group: dict[str, Any], batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        exp_avgs, exp_avg_sqs, steps = self._tensor_lists(batch)
        lr, (beta1, beta2), dtype = float(group["lr"]), group["betas"], exp_avgs[0].dtype
        points = []
        for work, mean, square, step in zip(batch.work, exp_avgs, exp_avg_sqs, steps, strict=True):
            metric = (square / (1 - beta2 ** step.to(square))).sqrt() + group["eps"]
            decayed = work.to(dtype) * (1 - lr * group["weight_decay"])
            points.append(metric * decayed - lr * mean / (1 - beta1 ** step.to(mean)))
        return points, [torch.full((), lr, dtype=dtype, device=work.device) for work in batch.work]

    def _prox_metric(self, group: dict[str, Any], batch: Batch) -> tuple[list[Tensor] | None, list[Tensor]]:
        _, squares, steps = self._tensor_lists(batch)
        beta2, taus = group["betas"][1], rates(group["lr"], steps)
        roots = [(1 - beta2 ** step.double().clamp(min=1)).sqrt() for step in steps]
        pairs = zip(squares, roots, strict=True)
        return [square.sqrt() / root.to(square) + group["eps"] for square, root in pairs], taus
