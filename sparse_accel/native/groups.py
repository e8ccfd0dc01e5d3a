"""Scores and proximal operators of groups."""

from __future__ import annotations

import torch
from torch import Tensor

from ._module import compute_type, kernels, on_cuda


def group_score(tensors: list[Tensor], layouts: list[int], kind: str, coupled: bool) -> list[Tensor]:
    """One vector of scores for each tensor, or one for all."""
    if not tensors:
        if coupled:
            raise ValueError("group_score: tensors: expected at least one coupled tensor, got none")
        return []
    first = tensors[0]
    dtype = compute_type(first.dtype)
    numbers = [layouts[i + 1] * layouts[i + 3] for i in range(0, len(layouts) - 3, 4)]
    if len(numbers) != len(tensors) or min(numbers) < 0 or not _is_dense(first):
        numbers = [0] * len(tensors)  # the kernels' checks say what is wrong
    of_all = coupled and on_cuda(first)
    # Kernels write every score of a tensor that has elements.
    empty, device = torch.zeros if 0 in layouts else torch.empty, first.device
    outputs = [empty(number, dtype=dtype, device=device) for number in (numbers[:1] if of_all else numbers)]
    kernels().group_score(tensors, layouts, outputs * len(tensors) if of_all else outputs, kind, coupled)
    return outputs[:1] if coupled else outputs


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided


def group_topk(scores: list[Tensor], k: int) -> list[Tensor]:
    """Masks of the k largest of all."""
    inputs = [score.contiguous() for score in scores]
    masks = [torch.empty_like(score, dtype=torch.bool) for score in inputs]
    kernels().group_topk(inputs, masks, k)
    return masks


@torch.no_grad()
def prox_(tensors: list[Tensor], layouts: list[int], prox: str, thresholds: list[float], with_value: bool) -> Tensor:
    """The penalty of each result, or nothing."""
    like = tensors[0] if tensors else torch.empty(0, device="cpu")
    values = like.new_zeros(len(tensors) if with_value else 0, dtype=torch.float64)
    kernels().prox_(tensors, layouts, prox, thresholds, values if with_value and tensors else None)
    return values
