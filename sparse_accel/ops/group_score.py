"""Scores of groups: one number for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

from torch import Tensor

from sparse_accel import reference
from sparse_accel.groups import GroupLayout

from ._library import call, flat, has_kernels, kernels, register, unflat


@overload
def group_score(
    tensors: Sequence[Tensor], layouts: Sequence[GroupLayout], kind: str = "l2", *, coupled: Literal[False] = False
) -> list[Tensor]: ...
@overload
def group_score(
    tensors: Sequence[Tensor], layouts: Sequence[GroupLayout], kind: str = "l2", *, coupled: Literal[True]
) -> Tensor: ...
def group_score(
    tensors: Sequence[Tensor], layouts: Sequence[GroupLayout], kind: str = "l2", *, coupled: bool = False
) -> list[Tensor] | Tensor:
    """Score every group of every tensor.

    Args:
        tensors: N dense tensors of one dtype (float32, float64, bfloat16, float16) and device.
        layouts: the layout of each tensor's memory.
        kind: ``"l2"``, ``"l2sq"``, ``"l1"``, ``"sum"`` or ``"amax"`` (the largest magnitude).
        coupled: the groups that share an index in all tensors form one group, scored together; all layouts then
            have the same number of groups.

    Returns:
        One vector ``[num_groups]`` per tensor, or one for all if ``coupled``; float32 (float64 for float64 input).

    Raises:
        ValueError: an unknown kind, a layout that does not fit its tensor, a tensor with gaps in its memory.
        TypeError: an unsupported or mixed dtype.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
        >>> group_score([weight], [GroupLayout(outer=2, groups=2, inner=1)])
        [tensor([5., 0.])]
    """
    scores = call("group_score", list(tensors), flat(layouts), kind, coupled)
    return scores[0] if coupled else scores


def _group_score(tensors: list[Tensor], layouts: list[int], kind: str, coupled: bool) -> list[Tensor]:
    if has_kernels(tensors[0]):
        return kernels().group_score(tensors, layouts, kind, coupled, apart=True)
    if coupled:
        return [reference.group_score(tensors, unflat(layouts), kind, coupled=True)]
    return reference.group_score(tensors, unflat(layouts), kind)


def _group_score_fake(tensors: list[Tensor], layouts: list[int], kind: str, coupled: bool) -> list[Tensor]:
    numbers = [layout.num_groups for layout in unflat(layouts)]
    dtype = reference.compute_type(tensors[0].dtype)
    return [tensors[0].new_empty(number, dtype=dtype) for number in (numbers[:1] if coupled else numbers)]


register(
    "group_score",
    "(Tensor[] tensors, int[] layouts, str kind, bool coupled) -> Tensor[]",
    _group_score,
    _group_score_fake,
)
