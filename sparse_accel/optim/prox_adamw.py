"""ProxAdamW: AdamW with a penalty, by the exact proximal operator in AdamW's own metric."""

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
from sparse_accel.sharding import sharded_as

from ._base import ProximalOptimizer
from ._batch import Batch, check_finite, state_dtype
from ._docs import shared_docs
from .steps.prox import metric_point

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

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        for param, work in zip(batch.params, batch.work, strict=True):
            state = self.state[param]
            if "step" not in state:
                zeros = torch.zeros_like(work, dtype=state_dtype(work), requires_grad=False)
                averages = {"exp_avg": sharded_as(zeros, param), "exp_avg_sq": sharded_as(zeros.clone(), param)}
                state.update(self._new_scalars(param), **averages)
        exp_avgs, exp_avg_sqs, steps = self._tensor_lists(batch)
        beta1, beta2 = group["betas"]
        prox_adamw(
            AdamwTensors(batch.work, batch.grads, exp_avgs, exp_avg_sqs, steps, batch.layouts, batch.strengths),
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
    """

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]
    layouts: Sequence[GroupLayout]
    strengths: Sequence[float]


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
    if not tensors.params:
        return
    if isinstance(numbers.lr, Tensor) and numbers.lr.is_cpu and not numbers.lr.requires_grad:
        numbers = dataclasses.replace(numbers, lr=numbers.lr.item())
    if fused if fused is not None else foreach is None:
        device = tensors.params[0].device
        ops.prox_adamw_step_(
            tensors.params,
            tensors.grads,
            tensors.exp_avgs,
            tensors.exp_avg_sqs,
            tensors.steps,
            tensors.layouts,
            prox=numbers.prox,
            strengths=tensors.strengths,
            lr=numbers.lr,
            beta1=numbers.beta1,
            beta2=numbers.beta2,
            eps=numbers.eps,
            weight_decay=numbers.weight_decay,
            maximize=numbers.maximize,
            grad_scale=None if grad_scale is None else grad_scale.to(device),
            found_inf=None if found_inf is None else found_inf.to(device),
        )
    elif grad_scale is not None or found_inf is not None:
        raise RuntimeError("grad_scale and found_inf: expected fused=True")
    else:
        (_multi_tensor_prox_adamw if foreach else _single_tensor_prox_adamw)(tensors, numbers)


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
    for i, strength in enumerate(tensors.strengths):
        if strength:
            xs[i] = metric_point(xs[i], metrics[i], tensors.layouts[i], rates[i] * strength, numbers.prox)
    torch._foreach_copy_(params, xs)
