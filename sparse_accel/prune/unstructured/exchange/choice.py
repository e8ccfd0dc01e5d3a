"""The largest entries of a tensor, of a sharded one too: which of them are here.

Scores are never gathered. Their bits, as whole numbers in the order of the scores, are found sixteen at a time: counts
of the next sixteen bits are summed over the processes (half a megabyte for each pass), and tell in which bin the last
one that stays lies. Equal scores are told apart by their place in the whole tensor in the same way, so that the choice
is that of one process with the whole tensor: ties go to the lowest index.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_accel.ops import topk_threshold_
from sparse_accel.sharding import all_sums, local_index, local_part, shard_groups

_BITS = 16  # of a pass


def count_of(mask: Tensor, param: Tensor) -> int:
    """How many are true of a mask of this process's part, on all processes.

    Args:
        mask: bool, of the shape of the part.
        param: the tensor whose part it is; where it is not sharded, the mask is of all.
    """
    (count,) = all_sums([mask.sum()], shard_groups(param))
    return int(count)


def places_of(param: Tensor) -> Tensor:
    """The index of every entry of this process's part in the whole tensor, flattened in the order of its dimensions,
    int64 of the part's shape.

    Example:
        >>> places_of(torch.zeros(2, 3)).tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    here = local_part(param)
    places, step = torch.zeros(here.shape, dtype=torch.int64, device=here.device), 1
    for dim in reversed(range(param.dim())):
        shape = [-1 if other == dim else 1 for other in range(param.dim())]
        places += (local_index(param, dim).to(here.device) * step).reshape(shape)
        step *= param.shape[dim]
    return places


def largest_of(values: Tensor, among: Tensor, count: int, parameter: Tensor) -> Tensor:
    """A mask of the ``count`` largest of the values where ``among`` is true, of all parts of the parameter; ties go to
    the lowest index."""
    if shard_groups(parameter):
        return largest_parts(values, among, count, parameter)
    scores = torch.where(among, values, -1.0).contiguous()
    return topk_threshold_(torch.ones_like(scores), scores, count) & among


def largest_parts(scores: Tensor, among: Tensor, count: int, param: Tensor) -> Tensor:
    """Which entries here are among the ``count`` largest of the whole tensor, bool; ties go to the lowest index.

    Args:
        scores: of this process's part, >= 0, float32 or float64.
        among: which may be chosen, bool; ``count`` of them at least, of all processes.
        count: of the whole tensor.
        param: whose part it is. All processes that hold parts have to call.

    Example:
        >>> scores = torch.tensor([1.0, 3.0, 2.0, 2.0])
        >>> largest_parts(scores, torch.ones(4, dtype=torch.bool), 2, scores)
        tensor([False,  True,  True, False])
    """
    if count == 0:
        return torch.zeros_like(among)
    kind, bits = (torch.int64, 63) if scores.dtype == torch.float64 else (torch.int32, 31)
    # Of numbers >= 0 the bits are in the order of the values; the largest shall come first.
    keys = (1 << bits) - 1 - scores.contiguous().view(kind).to(torch.int64)
    groups = shard_groups(param)
    bound, left = _kth(keys[among], count, bits, groups)
    first = among & (keys < bound)
    ties = among & (keys == bound)
    places = places_of(param)
    last, _ = _kth(places[ties], left, max(1, (param.numel() - 1).bit_length()), groups)
    return first | (ties & (places <= last))


def _kth(keys: Tensor, count: int, bits: int, groups: tuple[Any, ...]) -> tuple[int, int]:
    """The ``count``-th smallest of all processes' keys, and how many keys equal to it are among the first ``count``.

    Args:
        keys: int64 ``[n]``, below ``2 ** bits``.
        count: >= 1, of the keys of all processes at most.
        bits: of a key.
        groups: of processes to sum over.
    """
    found, done = 0, bits
    while done:
        width = min(_BITS, done)
        done -= width
        digits = (keys >> done) & ((1 << width) - 1)
        (counts,) = all_sums([torch.bincount(digits, minlength=1 << width)], groups)
        sums = counts.cumsum(0)
        digit = int(torch.searchsorted(sums, torch.tensor(count, device=sums.device)))
        count -= int(sums[digit] - counts[digit])
        keys = keys[digits == digit]
        found = found << width | digit
    return found, count
