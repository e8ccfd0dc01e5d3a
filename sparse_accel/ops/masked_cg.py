"""The refit of sparse solvers: conjugate gradients on what was kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_accel import reference

from ._library import call, has_kernels, kernels, register


def masked_cg(W: Tensor, mask: Tensor, H: Tensor, iters: int, *, start: Tensor | None = None) -> Tensor:
    """Refit the kept weights: conjugate gradients for ``min_X tr((X - W) H (X - W)^T)``, X zero outside the mask.

    Every row is a problem of its own with the system ``H[S, S]`` of its support S; all rows step together, so that a
    step is one product of matrices and one pass over the rows, and no system is ever formed. The preconditioner is the
    diagonal of ``H``. Rows stop by themselves where they are solved to rounding and where ``H`` does not curve along
    their direction: empty rows, exact starts and singular ``H`` need no care. A column with a zero diagonal keeps the
    values it starts from.

    Args:
        W: the dense weights ``[R, C]``, float32 or float64.
        mask: what may be nonzero, bool ``[R, C]``.
        H: symmetric and positive semidefinite, ``[C, C]``, of the dtype of ``W``.
        iters: steps at most; the error falls as in preconditioned conjugate gradients on ``H[S, S]``.
        start: where to start, ``[R, C]``; values outside the mask are not read. None: ``W`` on the mask.

    Returns:
        X ``[R, C]``, with exact zeros outside the mask. NaN and infinities of ``W`` and ``H`` show in it.

    Raises:
        ValueError: shapes or devices that do not fit, ``iters < 0``.
        TypeError: a dtype that does not fit.

    Example:
        >>> H = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> masked_cg(torch.tensor([[1.0, 4.0]]), torch.tensor([[False, True]]), H, iters=1)
        tensor([[0.0000, 4.5000]])
    """
    refitted: Tensor = call("masked_cg", W, mask, H, iters, start)
    return refitted


def _masked_cg_run(w: Tensor, *arguments: Any) -> Tensor:
    refitted: Tensor = (kernels() if has_kernels(w) else reference).masked_cg(w, *arguments)
    return refitted


def _masked_cg_fake(w: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(w, memory_format=torch.contiguous_format)


register(
    "masked_cg",
    "(Tensor w, Tensor mask, Tensor h, int iters, Tensor? start) -> Tensor",
    _masked_cg_run,
    _masked_cg_fake,
)
