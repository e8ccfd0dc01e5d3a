"""The groups with the largest scores, over all tensors together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from sparse_accel import reference

from ._library import call, has_kernels, kernels, register


@overload
def group_topk(scores: Tensor, k: int) -> Tensor: ...
@overload
def group_topk(scores: Sequence[Tensor], k: int) -> list[Tensor]: ...
def group_topk(scores: Tensor | Sequence[Tensor], k: int) -> Tensor | list[Tensor]:
    """Which scores are among the k largest, over all vectors together.

    Exactly k are chosen; among equal scores the lowest index wins (vectors in the order given). Synchronizes.

    Args:
        scores: one vector or a list of vectors, of one dtype and device, without NaN.
        k: 0 to the number of scores.

    Returns:
        A boolean mask, or a list of masks, of the shape of ``scores``.

    Raises:
        ValueError: k out of range, or NaN among the scores.

    Example:
        >>> import torch
        >>> group_topk(torch.tensor([2.0, 1.0, 2.0, 3.0]), 2)
        tensor([ True, False, False,  True])
    """
    single = isinstance(scores, Tensor)
    masks = call("group_topk", [scores] if single else list(scores), k)
    return masks[0] if single else masks


def _group_topk(scores: list[Tensor], k: int) -> list[Tensor]:
    return kernels().group_topk(scores, k, apart=True) if has_kernels(scores[0]) else reference.group_topk(scores, k)


def _group_topk_fake(scores: list[Tensor], k: int) -> list[Tensor]:
    return [torch.empty_like(score, dtype=torch.bool, memory_format=torch.contiguous_format) for score in scores]


register("group_topk", "(Tensor[] scores, int k) -> Tensor[]", _group_topk, _group_topk_fake)
