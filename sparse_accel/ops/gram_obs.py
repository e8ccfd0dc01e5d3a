"""Block backward elimination in a Gram matrix: the native op behind :func:`sparse_accel.prune.gram_obs`."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_accel import reference

from ._library import call, has_kernels, kernels, register


def gram_obs(
    inverse: Tensor, weight: Tensor, block: int, steps: int, sets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Remove blocks of columns one by one, always the one whose removal and refit costs the least.

    ``weight`` is the minimizer of ``tr(W A W^T) - 2 tr(B W^T)`` and ``inverse`` is ``A^-1``. Unit c owns ``block``
    neighbouring columns; removing it costs ``tr(W_c (Q_cc)^-1 W_c^T)`` with Q the inverse of A on the units that are
    left and W the minimizer on them (optimal brain surgeon, on blocks). Ties go to the lowest index.

    The kernels hold Q and ``N = W^T W``, whose downdates need no more than the rows of the unit that goes: the work
    does not depend on d. On the CPU they are downdated late, many units at a time.

    Args:
        inverse: Q ``[problems, n, n]``, symmetric positive definite, float64.
        weight: W ``[problems, d, n]``, float64.
        block: columns of each unit; n is a multiple.
        steps: units to remove from each problem.
        sets: int64 ``[units]``, numbers from 0, of the same size each: units are removed in rounds of one per set.

    Returns:
        The units in order of removal, int64 ``[problems, steps]``, and the cost of each, float64.

    Raises:
        ValueError: shapes or numbers that do not fit, a matrix that is not positive definite.
        TypeError: a dtype other than float64.

    Example:
        >>> weight = torch.tensor([[[3.0, 1.0, 2.0]]], dtype=torch.float64)
        >>> gram_obs(torch.eye(3, dtype=torch.float64)[None], weight, block=1, steps=2)
        (tensor([[1, 2]]), tensor([[1., 4.]], dtype=torch.float64))
    """
    order, damages = call("gram_obs", inverse, weight, block, steps, sets)
    return order, damages


def _gram_obs(
    inverse: Tensor, weight: Tensor, block: int, steps: int, sets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    run = (kernels() if has_kernels(inverse) else reference).gram_obs
    order, damages = run(inverse, weight, block, steps, sets)
    return order, damages


def _gram_obs_fake(
    inverse: Tensor, weight: Tensor, block: int, steps: int, sets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    shape = (inverse.shape[0], steps)
    return inverse.new_empty(shape, dtype=torch.int64), inverse.new_empty(shape)


register(
    "gram_obs",
    "(Tensor inverse, Tensor weight, int block, int steps, Tensor? sets=None) -> (Tensor, Tensor)",
    _gram_obs,
    _gram_obs_fake,
)
