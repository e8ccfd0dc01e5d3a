"""Scores and proximal operators of groups."""

from __future__ import annotations

import torch
from torch import Tensor

from ._module import compute_type, kernels, on_cuda

_MANY, _SMALL = 16, 1 << 16  # tensors and numbers: memory for each of its own takes longer than the scores


def group_score(
    tensors: list[Tensor], layouts: list[int], kind: str, coupled: bool, apart: bool = False
) -> list[Tensor]:
    """One vector of scores for each tensor, or one for all. `apart`: they share no memory, as the dispatcher wants it;
    else many small ones lie in one piece."""
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
    outputs = _vectors(numbers[:1] if of_all else numbers, first, dtype, apart, zeros=0 in layouts)
    kernels().group_score(tensors, layouts, outputs * len(tensors) if of_all else outputs, kind, coupled)
    return outputs[:1] if coupled else outputs


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided


def _vectors(sizes: list[int], like: Tensor, dtype: torch.dtype, apart: bool, *, zeros: bool = False) -> list[Tensor]:
    new = torch.zeros if zeros else torch.empty
    if len(sizes) > _MANY and not apart and like.is_cpu and sum(sizes) <= _SMALL:
        return list(new(sum(sizes), dtype=dtype, device=like.device).unsafe_split_with_sizes(sizes))
    return [new(size, dtype=dtype, device=like.device) for size in sizes]


def group_topk(scores: list[Tensor], k: int, apart: bool = False) -> list[Tensor]:
    """Masks of the k largest of all. `apart`: as of :func:`group_score`."""
    inputs = [score if score.is_contiguous() else score.contiguous() for score in scores]
    shapes = [score.shape for score in inputs]
    if len(inputs) > _MANY and all(len(shape) == 1 for shape in shapes):
        masks = _vectors([shape[0] for shape in shapes], inputs[0], torch.bool, apart)
    else:
        masks = [torch.empty_like(score, dtype=torch.bool) for score in inputs]
    kernels().group_topk(inputs, masks, k)
    return masks


def prox_(
    tensors: list[Tensor], layouts: list[int], prox: str, thresholds: list[float], with_value: bool
) -> Tensor | None:
    """The penalty of each result, where asked for."""
    values = None
    if with_value:
        values = torch.zeros(len(tensors), dtype=torch.float64, device=tensors[0].device if tensors else "cpu")
    kernels().prox_(tensors, layouts, prox, thresholds, values if tensors else None)
    return values
