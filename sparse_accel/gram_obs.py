"""Block backward elimination in a Gram matrix: the op behind :func:`sparse_accel.prune.gram_obs`."""

from __future__ import annotations

from torch import Tensor

from . import reference_gram


def gram_obs(
    inverse: Tensor, weight: Tensor, block: int, steps: int, sets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Remove blocks of columns one by one, always the one whose removal and refit costs the least.

    ``weight`` is the minimizer of ``tr(W A W^T) - 2 tr(B W^T)`` and ``inverse`` is ``A^-1``. Unit c owns ``block``
    neighbouring columns; removing it costs ``tr(W_c (Q_cc)^-1 W_c^T)`` with Q the inverse of A on the units that are
    left and W the minimizer on them (optimal brain surgeon). Ties go to the lowest index.

    Args:
        inverse: Q ``[problems, n, n]``, symmetric positive definite, float64.
        weight: W ``[problems, d, n]``.
        block: columns of each unit; n is a multiple.
        steps: units to remove from each problem.
        sets: int64 ``[units]``, numbers from 0, of the same size each: units are removed in rounds of one per set.

    Returns:
        The units in order of removal, int64 ``[problems, steps]``, and the cost of each, float64.
    """
    return reference_gram.gram_obs(inverse, weight, block, steps, sets)
