"""Proximal operators of group penalties, and the fused ProxSGD step that ends in them, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_accel import reference
from sparse_accel.groups import GroupLayout

from ._library import call, fake_step, flat, has_kernels, kernels, register, step_of, unflat


def prox_(
    tensors: Sequence[Tensor],
    layouts: Sequence[GroupLayout],
    thresholds: Sequence[float],
    *,
    prox: str = "soft",
    return_value: bool = False,
) -> Tensor | None:
    """Proximal operator of a group penalty, in place.

    ``"soft"`` is that of ``tau * sum_g sqrt(|g|) ||x_g||`` (group lasso; L1 with the element layout): group g is scaled
    by ``max(0, 1 - tau sqrt(|g|) / ||x_g||)``. ``"hard"`` is that of ``tau * sum_g |g| [x_g != 0]``: group g is kept
    where ``||x_g||^2 > 2 tau |g|``.

    Args:
        tensors: N dense tensors of one dtype and device.
        layouts: the layout of each tensor's memory.
        thresholds: tau of each tensor, the step size times the penalty's strength.
        return_value: also return the penalty of each result, without its strength.

    Returns:
        None, or float64 ``[N]`` on the tensors' device.

    Raises:
        ValueError: a negative threshold, an unknown prox, a layout that does not fit.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[3.0, 0.1], [4.0, 0.0]])
        >>> prox_([weight], [GroupLayout(outer=2, groups=2, inner=1)], [0.5**0.5])
        >>> weight
        tensor([[2.4000, 0.0000],
                [3.2000, 0.0000]])
    """
    values = call("prox_", list(tensors), flat(layouts), prox, list(thresholds), return_value)
    return values if return_value else None


def prox_sgd_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    steps: Sequence[Tensor],
    layouts: Sequence[GroupLayout],
    *,
    prox: str,
    strengths: Sequence[float],
    lr: float | Tensor,
    rho: float,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One fused ProxSGD step for a list of parameters, in place (Yang et al., ICLR 2020).

    ``t += 1; M = (1 - rho) M + rho grad; W = prox(W - lr M)`` with the prox threshold ``lr * strength``.

    Args:
        params: W, dense, of one dtype and device.
        grads: as ``params``; strides may differ; not modified.
        buffers: M, float32 (float64 for float64 parameters), with the strides of ``params``.
        steps: t, one-element float32 tensors, on the CPU or the parameters' device.
        layouts: the layout of each parameter's memory.
        prox: ``"soft"`` or ``"hard"``, see :func:`prox_`.
        strengths: penalty strength of each parameter; 0 leaves it unregularized.
        lr: learning rate; a one-element tensor is read on its device.
        rho: share of the new gradient, in (0, 1]; 1 is without momentum.
        maximize: ascend.
        grad_scale: gradients are divided by it (AMP).
        found_inf: nothing changes where it is not zero (AMP).

    Raises:
        ValueError: sizes, strides or numbers that do not fit.
        TypeError: a dtype that does not fit.

    Example:
        >>> import torch
        >>> w, m, t = torch.tensor([[1.0, 0.1]]), torch.zeros(1, 2), torch.tensor(0.0)
        >>> layout = GroupLayout(outer=1, groups=2, inner=1)
        >>> prox_sgd_step_([w], [torch.zeros(1, 2)], [m], [t], [layout], prox="soft", strengths=[0.4], lr=0.5, rho=0.1)
        >>> w, t
        (tensor([[0.8000, 0.0000]]), tensor(1.))
    """
    lr_tensor = lr if isinstance(lr, Tensor) else None
    call(
        "prox_sgd_step_",
        list(params),
        list(grads),
        list(buffers),
        list(steps),
        flat(layouts),
        prox,
        list(strengths),
        0.0 if isinstance(lr, Tensor) else float(lr),
        lr_tensor,
        float(rho),
        maximize,
        grad_scale,
        found_inf,
    )


def _prox(tensors: list[Tensor], layouts: list[int], prox: str, thresholds: list[float], with_value: bool) -> Tensor:
    if has_kernels(tensors[0]):
        values = kernels().prox_(tensors, layouts, prox, thresholds, with_value)
    else:
        values = reference.prox_(tensors, unflat(layouts), thresholds, prox=prox, return_value=with_value)
    return tensors[0].new_empty(0, dtype=torch.float64) if values is None else values


def _prox_fake(
    tensors: list[Tensor], layouts: list[int], prox: str, thresholds: list[float], with_value: bool
) -> Tensor:
    return tensors[0].new_empty(len(tensors) if with_value else 0, dtype=torch.float64)


register(
    "prox_",
    "(Tensor(a!)[] tensors, int[] layouts, str prox, float[] thresholds, bool with_value) -> Tensor",
    _prox,
    _prox_fake,
)
register(
    "prox_sgd_step_",
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] buffers, Tensor(c!)[] steps, int[] layouts, str prox, "
    "float[] strengths, float lr, Tensor? lr_tensor, float rho, bool maximize, Tensor? grad_scale, Tensor? found_inf) "
    "-> ()",
    step_of("prox_sgd_step_", 4, ("rho", "maximize", "grad_scale", "found_inf")),
    fake_step,
)
