"""Thresholding in place: which memory the kernels see, of any strides and any way to count."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._module import (
    FLOATING,
    check_device,
    check_dtype,
    compute_type,
    kernels,
    on_cuda,
    product,
    same_memory_order,
    shown,
)
from .groups import group_score, group_topk

_OP = "topk_threshold_"


class _Call(NamedTuple):
    """The call's arguments, checked."""

    x: Tensor
    scores: Tensor | None
    k: list[int]
    by: str
    layout: list[int]  # outer, groups, inner, blocks
    scale: Tensor | None

    @property
    def in_blocks(self) -> bool:
        return len(self.k) == 2

    @property
    def of_groups(self) -> bool:
        return not self.in_blocks and self.by in ("group", "within")

    @property
    def num_groups(self) -> int:
        return self.layout[1] * self.layout[3]

    @property
    def rows(self) -> int:
        return self.x.shape[0] if not self.in_blocks and self.by == "row" and self.x.dim() > 1 else 1

    @property
    def columns(self) -> int:
        return self.x.shape[-1] if self.x.dim() > 0 else 1

    @property
    def choices(self) -> int:
        """How many elements, or groups, there are to choose from, each time."""
        if self.by == "group":
            return self.num_groups
        if self.by == "within":
            return self.layout[0] * self.layout[2]
        if self.rows == 0:
            return product(self.x.shape[1:])
        return self.x.numel() // self.rows


def topk_threshold_(
    x: Tensor, scores: Tensor | None, k: list[int], by: str, layout: list[int], scale: Tensor | None
) -> Tensor:
    """What was kept: bool, as x."""
    mask = _at_once(x, scores, k, by, layout, scale)
    if mask is None:
        mask = _in_steps(_Call(x, scores, k, by, layout, scale))
    if not x.is_inference():
        torch.autograd.graph.increment_version(x)
    return mask


def _at_once(
    x: Tensor, scores: Tensor | None, k: list[int], by: str, layout: list[int], scale: Tensor | None
) -> Tensor | None:
    """What one call does; None, and nothing has changed, where memory does not lie so or something is wrong."""
    if x.layout != torch.strided:
        return None
    if by in ("tensor", "row"):
        mask = torch.empty_like(x, dtype=torch.bool)
        return mask if kernels().topk_as_it_is(x, scores, scale, mask, by == "row", k) else None
    if by != "group" or len(k) != 1 or len(layout) != 4 or x.dim() == 0:
        return None
    number, source = layout[1] * layout[3], x if scores is None else scores
    if scale is not None and scores is None and scale.dtype == x.dtype == compute_type(x.dtype):
        if scale.shape != x.shape[-1:] or scale.device != x.device:
            return None
        source, scale = x.detach() * scale.detach(), None
    if scale is not None or not 0 < number <= x.numel():
        return None
    norms = torch.empty(number, dtype=compute_type(source.dtype), device=x.device)
    keep, mask = torch.empty_like(norms, dtype=torch.bool), torch.empty_like(x, dtype=torch.bool)
    return mask if kernels().topk_norms(x, source, norms, keep, mask, layout, k[0]) else None


@torch.no_grad()
def _in_steps(call: _Call) -> Tensor:
    _check(call)
    check_device(_OP, "x", call.x)
    if not call.of_groups:
        return _topk_elements(call)
    return _topk_groups(call) if call.by == "group" else _topk_within(call)


def _check_tensor(name: str, t: Tensor, x: Tensor) -> None:
    if t.layout != torch.strided:
        raise TypeError(f"{_OP}: {name}: expected a dense tensor, got {shown(t.layout)}")
    check_dtype(_OP, name, t, FLOATING)
    if t.device != x.device:
        raise ValueError(f"{_OP}: {name}: expected the device of x, {x.device}, got {t.device}")


def _check(call: _Call) -> None:
    x, scores, scale, by = call.x, call.scores, call.scale, call.by
    _check_tensor("x", x, x)
    if not x.is_contiguous() and torch._debug_has_internal_overlap(x) == 1:
        raise ValueError(
            f"{_OP}: x: expected elements that do not share memory, got shape {list(x.shape)} with strides "
            f"{list(x.stride())}"
        )
    if by not in ("tensor", "row", "group", "within"):
        raise ValueError(f"{_OP}: by: expected 'tensor', 'row', 'group' or 'within', got {by!r}")
    if call.of_groups:
        kernels().check_layouts(_OP, [x], call.layout)
    if scores is not None:
        _check_tensor("scores", scores, x)
        of_groups = call.of_groups and by == "group" and scores.dim() == 1 and scores.numel() == call.num_groups
        if not of_groups and scores.shape != x.shape:
            raise ValueError(f"{_OP}: scores: expected the shape of x, {list(x.shape)}, got {list(scores.shape)}")
        if scale is not None:
            raise ValueError(f"{_OP}: scale: expected None where scores are given")
    if scale is not None:
        _check_tensor("scale", scale, x)
        if scale.dim() != 1 or x.dim() == 0 or scale.numel() != x.shape[-1]:
            raise ValueError(
                f"{_OP}: scale: expected one number for each of the {call.columns} columns (last dimension) of x, got "
                f"shape {list(scale.shape)}"
            )
    _check_k(call)


def _check_k(call: _Call) -> None:
    k = call.k
    if call.in_blocks:
        if not 1 <= k[0] < k[1] <= 32:
            raise ValueError(f"{_OP}: k: expected (n, m) with 1 <= n < m <= 32, got ({k[0]}, {k[1]})")
        return
    if len(k) != 1:
        raise ValueError(f"{_OP}: k: expected a number or a pair (n, m), got {len(k)} numbers")
    most = call.choices
    if not 0 <= k[0] <= most:
        of = "groups" if call.by == "group" else "elements"
        where = {"row": " of a row", "within": " of a group"}.get(call.by, "")
        raise ValueError(f"{_OP}: k: expected 0 <= k <= {most}, the number of {of}{where}, got {k[0]}")


def _run(x: Tensor, scores: Tensor | None, scale: Tensor | None, mask: Tensor, rows: int, k: list[int]) -> None:
    """x and mask contiguous; scores contiguous; scale in the compute type."""
    if x.numel() == 0:
        return
    if len(k) == 2:
        kernels().topk_blocks(x, scores, scale, mask, *k)
    else:
        kernels().topk_rows(x, scores, scale, mask, rows, k[0])


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _readable(scores: Tensor, x: Tensor, source: Tensor | None) -> Tensor:
    """Scores that the kernels may read while they write x: their own memory, or that of x itself, if it is `source`."""
    out = scores.contiguous()
    same = out.data_ptr() == x.data_ptr() and out.dtype == x.dtype and x is source
    return out if same or not _shares_memory(out, x) else out.clone()


def _topk_elements(call: _Call) -> Tensor:
    x = call.x.contiguous()
    scores = None if call.scores is None else _readable(call.scores, x, call.x)
    scale = None if call.scale is None else _readable(call.scale.to(compute_type(x.dtype)), x, None)
    mask = torch.empty_like(x, dtype=torch.bool)
    _run(x, scores, scale, mask, call.rows, call.k)
    if x is call.x:
        return mask
    call.x.copy_(x)
    return torch.empty_like(call.x, dtype=torch.bool).copy_(mask)


def _element_scores(call: _Call) -> Tensor | None:
    """Scores of all elements, in the memory order of x; None: magnitudes."""
    if call.scores is not None:
        if same_memory_order(call.scores, call.x):
            return call.scores
        return torch.empty_like(call.x, dtype=call.scores.dtype).copy_(call.scores)
    if call.scale is None:
        return None
    return call.x.to(compute_type(call.x.dtype)).abs().mul_(call.scale)


def _signed_scores(call: _Call) -> Tensor:
    """The same but for their signs, which norms do not see."""
    scores = _element_scores(call) if call.scores is not None else None
    if scores is not None:
        return scores
    if call.scale is None:
        return call.x
    dtype = compute_type(call.x.dtype)
    return call.x.to(dtype).mul(call.scale.to(dtype))


def _grouped(t: Tensor, layout: list[int]) -> Tensor:
    """``[blocks, groups, outer, inner]`` of a dense tensor's memory."""
    outer, groups, inner, blocks = layout
    strides = (outer * groups * inner, groups * inner, inner, 1)
    return t.as_strided((blocks, outer, groups, inner), strides).permute(0, 2, 1, 3)


def _row_scale(call: _Call) -> Tensor | None:
    """A factor for each element of a row of memory, where every row has the same: the scale, over and over."""
    row = call.layout[1] * call.layout[2]
    if call.scale is None or not call.x.is_contiguous() or row % call.columns != 0:
        return None
    return call.scale.to(compute_type(call.x.dtype)).repeat(row // call.columns)


def _topk_within(call: _Call) -> Tensor:
    outer, groups, _, _ = call.layout
    mask = torch.empty_like(call.x, dtype=torch.bool)
    if call.x.numel() == 0:
        return mask
    if call.x.is_cpu and not on_cuda(call.x) and outer > 1 and groups > 1:
        scale = _row_scale(call)
        scores = None if scale is not None else _element_scores(call)
        if scores is not None and _shares_memory(scores, call.x) and scores.data_ptr() != call.x.data_ptr():
            scores = torch.empty_like(scores).copy_(scores)
        kernels().topk_within(call.x, scores, scale, mask, call.layout, call.k[0])
        return mask
    element, view, mask_view = _element_scores(call), _grouped(call.x, call.layout), _grouped(mask, call.layout)
    x, row_mask = view.contiguous(), mask_view.contiguous()
    scores = None if element is None else _readable(_grouped(element, call.layout), x, view)
    _run(x, scores, None, row_mask, call.num_groups, call.k)
    if x is not view and not _shares_memory(x, view):
        view.copy_(x)
    if row_mask is not mask_view and not _shares_memory(row_mask, mask_view):
        mask_view.copy_(row_mask)
    return mask


def _topk_groups(call: _Call) -> Tensor:
    given = call.scores
    if given is not None and given.dim() == 1 and given.numel() == call.num_groups:
        scores = given.contiguous()
    else:
        (scores,) = group_score([_signed_scores(call)], call.layout, "l2", False)
    try:
        (keep,) = group_topk([scores], call.k[0])
    except ValueError as error:  # k is checked: NaN
        raise ValueError(str(error).replace("group_topk", _OP, 1)) from None
    mask = torch.empty_like(call.x, dtype=torch.bool)
    if call.x.numel():
        kernels().topk_groups(call.x, mask, keep, call.layout)
    return mask
