"""The projections and the refit of sparse solvers: keep the k largest in place, and solve on what was kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops, reference_topk
from .groups import GroupLayout, layout_of

ops._LIBRARY.define(
    "topk_threshold_(Tensor(a!) x, Tensor? scores, int[] k, str by, int[] layout, Tensor? scale) -> Tensor"
)
ops._LIBRARY.define("masked_cg(Tensor w, Tensor mask, Tensor h, int iters, Tensor? start) -> Tensor")


def _is_row_major_within(x: Tensor, by: str) -> bool:
    """Whether each group's elements lie in memory in row-major order, so that ties go by it."""
    own = {"input": (1,), "output": (0,), "kernel": (0, 1)}.get(by, ())
    strides = [stride for d, stride in enumerate(x.stride()) if d not in own and x.size(d) > 1]
    return strides == sorted(strides, reverse=True)


def topk_threshold_(
    x: Tensor,
    scores: Tensor | None,
    k: int | tuple[int, int],
    *,
    by: str = "tensor",
    layout: GroupLayout | str | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Keep the elements with the k largest scores and set all others to zero, in place.

    Exactly as many are kept as asked for; among equal scores the lowest index wins, in row-major order. What ``k``
    counts, and over what:

    ==============  ==========================================================================================
    ``"tensor"``    elements of the whole tensor
    ``"row"``       elements of each ``x[i]`` (a vector is one row)
    ``"group"``     whole groups of ``layout``, the k with the largest Euclidean norm of their elements' scores
    ``"within"``    elements of each group of ``layout``; ties go by their order in memory
    a pair (n, m)   n of every m neighbours along the last dimension, whatever ``by``; where m does not divide it, the
                    last block of each row has r < m elements, of which min(n, r) are kept
    ==============  ==========================================================================================

    Args:
        x: float32, float64, bfloat16 or float16, of any strides; overwritten.
        scores: as ``x``, of any of those dtypes; with ``by="group"`` also one number for each group. None: the
            magnitudes ``|x|``, in float32 (float64 for float64).
        k: 0 to all of them, or (n, m) with 1 <= n < m <= 32.
        by: see above.
        layout: the groups: a :class:`GroupLayout` of the memory of ``x``, or ``"input"``, ``"output"``, ``"kernel"``.
        scale: one number for each column (last dimension); scores are then ``|x| * scale``, formed in memory only for
            whole groups, and within groups of a tensor that is not contiguous. Only where ``scores`` is None.

    Returns:
        What was kept: a boolean tensor of the shape and strides of ``x``.

    Raises:
        ValueError: NaN among the scores, k out of range, shapes or a layout that do not fit; nothing has changed then.
        TypeError: an unsupported dtype.

    Example:
        >>> x = torch.tensor([[1.0, -4.0, 2.0, 0.5], [3.0, 3.0, -3.0, 0.0]])
        >>> topk_threshold_(x.clone(), None, 3)
        tensor([[False,  True, False, False],
                [ True,  True, False, False]])
        >>> _ = topk_threshold_(x, None, (2, 4), scale=torch.tensor([1.0, 1.0, 1.0, 100.0]))
        >>> x
        tensor([[ 0.0000, -4.0000,  0.0000,  0.5000],
                [ 3.0000,  3.0000,  0.0000,  0.0000]])
    """
    numbers = [k] if isinstance(k, int) else list(k)
    if by not in ("group", "within") or len(numbers) == 2:
        return _topk_threshold(x, scores, numbers, by, [], scale)
    if layout is None:
        raise ValueError(f"layout: expected the groups' layout with by={by!r}, got None")
    if not isinstance(layout, str):
        return _topk_threshold(x, scores, numbers, by, list(layout), scale)
    found, of_own_memory = layout_of(x, layout)
    if of_own_memory and (by == "group" or _is_row_major_within(x, layout)):
        return _topk_threshold(x, scores, numbers, by, list(found), scale)
    contiguous = x.clone(memory_format=torch.contiguous_format)
    kept = _topk_threshold(contiguous, scores, numbers, by, list(layout_of(contiguous, layout)[0]), scale)
    x.copy_(contiguous)
    return torch.empty_like(x, dtype=torch.bool).copy_(kept)


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
    refitted: Tensor = _call("masked_cg", W, mask, H, iters, start)
    return refitted


def _topk_threshold(*arguments: Any) -> Tensor:
    kept: Tensor = _call("topk_threshold_", *arguments)
    return kept


def _kernels() -> Any:
    """The native module that :mod:`sparse_accel.ops` runs on."""
    return vars(ops)["_C"]


def _call(name: str, *arguments: Any) -> Any:
    """The kernel at once where nothing watches, else through the dispatcher, as in :mod:`sparse_accel.ops`."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return getattr(torch.ops.sparse_accel, name)(*arguments)
    if type(arguments[0]) not in (Tensor, torch.nn.Parameter) or not ops._has_kernels(arguments[0]):
        return getattr(torch.ops.sparse_accel, name)(*arguments)
    return getattr(_kernels(), name)(*arguments)


def _topk_threshold_run(x: Tensor, *arguments: Any) -> Tensor:
    twin = reference_topk.topk_threshold_
    return _kernels().topk_threshold_(x, *arguments) if ops._has_kernels(x) else twin(x, *arguments)


def _topk_threshold_fake(x: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(x, dtype=torch.bool)


def _masked_cg_run(w: Tensor, *arguments: Any) -> Tensor:
    return _kernels().masked_cg(w, *arguments) if ops._has_kernels(w) else reference_topk.masked_cg(w, *arguments)


def _masked_cg_fake(w: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(w, memory_format=torch.contiguous_format)


for _name, _run, _fake in (
    ("topk_threshold_", _topk_threshold_run, _topk_threshold_fake),
    ("masked_cg", _masked_cg_run, _masked_cg_fake),
):
    ops._LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sparse_accel::{_name}", _fake, lib=ops._LIBRARY)
