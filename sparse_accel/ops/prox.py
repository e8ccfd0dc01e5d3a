"""Proximal operators of group penalties, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_accel import reference
from sparse_accel.groups import GroupLayout

from ._library import call, flat, has_kernels, kernels, register, unflat


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


def _prox(tensors: list[Tensor], layouts: list[int], prox: str, thresholds: list[float], with_value: bool) -> Tensor:
    if has_kernels(tensors[0]):
        return kernels().prox_(tensors, layouts, prox, thresholds, with_value)
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
