"""The fused RMDA step for a list of parameters, in place."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sparse_accel.groups import GroupLayout

from ._library import call, fake_step, flat, register, step_of


def rmda_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    points: Sequence[Tensor],
    anchors: Sequence[Tensor],
    steps: Sequence[Tensor],
    alphas: Sequence[Tensor],
    layouts: Sequence[GroupLayout],
    *,
    prox: str,
    strengths: Sequence[float],
    lr: float | Tensor,
    momentum: float,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One fused RMDA step for a list of parameters, in place (Huang & Lee, ICLR 2022, Algorithm 1).

    ``t += 1; X = W0 + sqrt((t - 1) / t) (X - W0) - lr grad; alpha += lr sqrt(t); W = (1 - c) W + c prox(X)``
    with the prox threshold ``alpha / sqrt(t) * strength``. X is the paper's ``W0 - V / beta``, with V the weighted sum
    of the gradients.

    Args:
        params: W, dense, of one dtype and device.
        grads: as ``params``; strides may differ; not modified.
        points: X, float32 (float64 for float64 parameters), with the strides of ``params``.
        anchors: W0, the parameters at the start of the stage, as ``points``.
        steps: t, one-element float32 tensors, on the CPU or the parameters' device.
        alphas: one-element float64 tensors, where ``steps`` are.
        layouts: the layout of each parameter's memory.
        prox: ``"soft"`` or ``"hard"``, see :func:`prox_`.
        strengths: penalty strength of each parameter; 0 leaves it unregularized.
        lr: learning rate; a one-element tensor is read on its device.
        momentum: c in (0, 1]; 1 takes the proximal iterate itself.
        maximize: ascend.
        grad_scale: gradients are divided by it (AMP).
        found_inf: nothing changes where it is not zero (AMP).

    Raises:
        ValueError: sizes, strides or numbers that do not fit.
        TypeError: a dtype that does not fit.

    Example:
        >>> import torch
        >>> w, zero = torch.ones(2, 1), torch.zeros(2, 1)
        >>> t, alpha = torch.tensor(0.0), torch.tensor(0.0, dtype=torch.float64)
        >>> layout = GroupLayout(outer=1, groups=2, inner=1)
        >>> rmda_step_([w], [torch.ones(2, 1)], [zero], [w.clone()], [t], [alpha], [layout],
        ...            prox="soft", strengths=[1.0], lr=0.25, momentum=1.0)
        >>> w.flatten(), t
        (tensor([0.5000, 0.5000]), tensor(1.))
    """
    lr_tensor = lr if isinstance(lr, Tensor) else None
    call(
        "rmda_step_",
        list(params),
        list(grads),
        list(points),
        list(anchors),
        list(steps),
        list(alphas),
        flat(layouts),
        prox,
        list(strengths),
        0.0 if isinstance(lr, Tensor) else float(lr),
        lr_tensor,
        float(momentum),
        maximize,
        grad_scale,
        found_inf,
    )


register(
    "rmda_step_",
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] points, Tensor[] anchors, Tensor(c!)[] steps, "
    "Tensor(d!)[] alphas, int[] layouts, str prox, float[] strengths, float lr, Tensor? lr_tensor, float momentum, "
    "bool maximize, Tensor? grad_scale, Tensor? found_inf) -> ()",
    step_of("rmda_step_", 6, ("momentum", "maximize", "grad_scale", "found_inf")),
    fake_step,
)
