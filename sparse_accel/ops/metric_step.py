"""Fused steps of adaptive methods for a list of parameters, in place: RAMDA, and AdamW with a penalty.

Both end in the proximal operator in the metric P that they have just brought up to date,
``argmin_w 1/2 <w - x, P (w - x)> + tau psi(w)``. For group lasso it is exact, by one scalar root per group: with
q = P x and tau_g = tau sqrt(|g|), group g is zero where ``||q_g|| <= tau_g``; else ``w_g = n q_g / (n P_g + tau_g)``
with n the root of ``sum_i q_i^2 / (n P_i + tau_g)^2 = 1``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sparse_accel.groups import GroupLayout

from ._library import call, fake_step, flat, register, step_of


def ramda_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    duals: Sequence[Tensor],
    squares: Sequence[Tensor],
    anchors: Sequence[Tensor],
    steps: Sequence[Tensor],
    alphas: Sequence[Tensor],
    layouts: Sequence[GroupLayout],
    *,
    prox: str,
    strengths: Sequence[float],
    lr: float | Tensor,
    momentum: float,
    eps: float,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One fused RAMDA step for a list of parameters, in place (Huang & Lee, NeurIPS 2024, arXiv 2403.14398).

    ``t += 1; s = lr sqrt(t); alpha += s; V += s grad; U += s grad^2; P = U^(1/3) + eps``, and
    ``W = (1 - c) W + c Wt`` with ``Wt = argmin <V, w> + 1/2 <w - W0, P (w - W0)> + alpha strength psi(w)``.

    Args:
        params: W, dense, of one dtype and device.
        grads: as ``params``; strides may differ; not modified.
        duals: V, float32 (float64 for float64 parameters), with the strides of ``params``.
        squares: U, as ``duals``.
        anchors: W0, the parameters at the start of the stage, as ``duals``.
        steps: t, one-element float32 tensors, on the CPU or the parameters' device.
        alphas: one-element float64 tensors, where ``steps`` are.
        layouts: the layout of each parameter's memory.
        prox: ``"soft"`` or ``"hard"``, see :func:`prox_`.
        strengths: penalty strength of each parameter; 0 leaves it unregularized.
        lr: learning rate; a one-element tensor is read on its device.
        momentum: c in (0, 1]; 1 takes the proximal iterate itself.
        eps: > 0, added to the cube root.
        maximize: ascend.
        grad_scale: gradients are divided by it (AMP).
        found_inf: nothing changes where it is not zero (AMP).

    Raises:
        ValueError: sizes, strides or numbers that do not fit.
        TypeError: a dtype that does not fit.

    Example:
        >>> import torch
        >>> w, v, u = torch.ones(2, 1), torch.zeros(2, 1), torch.zeros(2, 1)
        >>> t, alpha = torch.tensor(0.0), torch.tensor(0.0, dtype=torch.float64)
        >>> layout = GroupLayout(outer=1, groups=2, inner=1)
        >>> ramda_step_([w], [torch.ones(2, 1)], [v], [u], [w.clone()], [t], [alpha], [layout],
        ...             prox="soft", strengths=[1.0], lr=0.125, momentum=1.0, eps=1e-6)
        >>> w.flatten(), t
        (tensor([0.5000, 0.5000]), tensor(1.))
    """
    tensors = (params, grads, duals, squares, anchors, steps, alphas)
    rate, lr_tensor = (0.0, lr) if isinstance(lr, Tensor) else (float(lr), None)
    numbers = (rate, lr_tensor, float(momentum), float(eps), maximize, grad_scale, found_inf)
    call("ramda_step_", *map(list, tensors), flat(layouts), prox, list(strengths), *numbers)


def prox_adamw_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    layouts: Sequence[GroupLayout],
    *,
    prox: str,
    strengths: Sequence[float],
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One fused AdamW step with a penalty, for a list of parameters, in place.

    The step of ``torch.optim.AdamW`` (Loshchilov & Hutter, ICLR 2019) to a point x, then
    ``W = argmin 1/2 <w - x, P (w - x)> + lr strength psi(w)`` with ``P = sqrt(v / (1 - beta2^t)) + eps``, what AdamW
    divides by (ProxGen: Yun, Lozano & Yang, NeurIPS 2021).

    Args:
        params: W, dense, of one dtype and device.
        grads: as ``params``; strides may differ; not modified.
        exp_avgs: m, float32 (float64 for float64 parameters), with the strides of ``params``.
        exp_avg_sqs: v, as ``exp_avgs``.
        steps: t, one-element float32 tensors, on the CPU or the parameters' device.
        layouts: the layout of each parameter's memory.
        prox: ``"soft"`` or ``"hard"``, see :func:`prox_`.
        strengths: penalty strength of each parameter; 0 leaves it unregularized.
        lr: learning rate; a one-element tensor is read on its device.
        beta1: decay of m, in [0, 1).
        beta2: decay of v, in [0, 1).
        eps: >= 0.
        weight_decay: decoupled, >= 0.
        maximize: ascend.
        grad_scale: gradients are divided by it (AMP).
        found_inf: nothing changes where it is not zero (AMP).

    Raises:
        ValueError: sizes, strides or numbers that do not fit.
        TypeError: a dtype that does not fit.

    Example:
        >>> import torch
        >>> w, m, v, t = torch.tensor([[1.0], [0.1]]), torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor(0.0)
        >>> layout = GroupLayout(outer=1, groups=2, inner=1)
        >>> prox_adamw_step_([w], [torch.ones(2, 1)], [m], [v], [t], [layout], prox="soft", strengths=[1.0], lr=0.25,
        ...                  beta1=0.9, beta2=0.999, eps=0.0, weight_decay=0.0)
        >>> w.flatten(), t
        (tensor([0.5000, 0.0000]), tensor(1.))
    """
    tensors = (params, grads, exp_avgs, exp_avg_sqs, steps)
    rate, lr_tensor = (0.0, lr) if isinstance(lr, Tensor) else (float(lr), None)
    numbers = (rate, lr_tensor, float(beta1), float(beta2), float(eps), float(weight_decay))
    scaling = (maximize, grad_scale, found_inf)
    call("prox_adamw_step_", *map(list, tensors), flat(layouts), prox, list(strengths), *numbers, *scaling)


register(
    "ramda_step_",
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] duals, Tensor(c!)[] squares, Tensor[] anchors, "
    "Tensor(d!)[] steps, Tensor(e!)[] alphas, int[] layouts, str prox, float[] strengths, float lr, "
    "Tensor? lr_tensor, float momentum, float eps, bool maximize, Tensor? grad_scale, Tensor? found_inf) -> ()",
    step_of("ramda_step_", 7, ("momentum", "eps", "maximize", "grad_scale", "found_inf")),
    fake_step,
)
register(
    "prox_adamw_step_",
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] steps, "
    "int[] layouts, str prox, float[] strengths, float lr, Tensor? lr_tensor, float beta1, float beta2, float eps, "
    "float weight_decay, bool maximize, Tensor? grad_scale, Tensor? found_inf) -> ()",
    step_of(
        "prox_adamw_step_",
        5,
        ("beta1", "beta2", "eps", "weight_decay", "maximize", "grad_scale", "found_inf"),
    ),
    fake_step,
)
