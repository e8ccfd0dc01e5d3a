"""The projection of sparse solvers: keep the k largest in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_accel import reference
from sparse_accel.groups import GroupLayout, layout_of

from ._library import call, has_kernels, kernels, register


def topk_threshold_(
    x: Tensor,
    scores: Tensor | None,
    k: int | tuple[int, int],
    *,
    by: str = "tensor",
    layout: GroupLayout | str | None = None,
    scale: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    """Keep the elements with the k largest scores and set all others to zero, in place.

    Exactly as many are kept as asked for; among equal scores the lowest index wins, in row-major order. What ``k``
    counts, and over what:

    ==============  ==========================================================================================
    ``"tensor"``    elements of the whole tensor
    ``"row"``       elements of each ``x[i]`` (a vector is one row)
    ``"group"``     whole groups of ``layout``, the k with the largest Euclidean norm of their elements' scores
    ``"within"``    elements of each group of ``layout``; ties go by their order in memory
    a pair (n, m)   n of every m neighbours along ``dim``, whatever ``by``; where m does not divide its size, the last
                    block has r < m elements, of which min(n, r) are kept
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
        dim: along which (n, m) counts neighbours, and to whose indices ``scale`` belongs then. The last by default: of
            a linear layer's weight the inputs, but of a convolution's ``[out, in, kh, kw]`` the kernel's width. Its
            input channels, as sparse tensor cores want them, are ``dim=1``; in channels_last memory nothing is copied.

    Returns:
        What was kept: a boolean tensor of the shape and strides of ``x``.

    Raises:
        ValueError: NaN among the scores, k out of range, shapes, a layout or ``dim`` that do not fit; nothing has
            changed then.
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
    if dim != -1:
        if len(numbers) != 2:
            raise ValueError(f"dim: expected -1 unless k is a pair (n, m), got {dim}")
        if not -x.dim() <= dim < x.dim():
            raise ValueError(f"dim: expected one of the {x.dim()} dimensions of x, got {dim}")
        moved = None if scores is None else scores.movedim(dim, -1) if scores.dim() == x.dim() else scores
        return _topk_threshold(x.movedim(dim, -1), moved, numbers, by, [], scale).movedim(-1, dim)
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


def _is_row_major_within(x: Tensor, by: str) -> bool:
    """Whether each group's elements lie in memory in row-major order, so that ties go by it."""
    own = {"input": (1,), "output": (0,), "kernel": (0, 1)}.get(by, ())
    strides = [stride for d, stride in enumerate(x.stride()) if d not in own and x.size(d) > 1]
    return strides == sorted(strides, reverse=True)


def _topk_threshold(*arguments: Any) -> Tensor:
    kept: Tensor = call("topk_threshold_", *arguments)
    return kept


def _topk_threshold_run(x: Tensor, *arguments: Any) -> Tensor:
    kept: Tensor = (kernels() if has_kernels(x) else reference).topk_threshold_(x, *arguments)
    return kept


def _topk_threshold_fake(x: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(x, dtype=torch.bool)


register(
    "topk_threshold_",
    "(Tensor(a!) x, Tensor? scores, int[] k, str by, int[] layout, Tensor? scale) -> Tensor",
    _topk_threshold_run,
    _topk_threshold_fake,
)
