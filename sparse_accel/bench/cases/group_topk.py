"""``group_topk``: the mask of the k largest scores over a whole list, exact, ties to the lowest index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from sparse_accel import ops, reference
from sparse_accel.bench.case import Case, Settings
from sparse_accel.bench.workloads import weights_of
from sparse_accel.groups import group_layout


def cases(settings: Settings) -> Iterator[Case]:
    """Half of all groups, scored by input channel, by kernel, and every weight on its own."""
    for workload in settings.workloads:
        weights = weights_of(workload, torch.float32, settings.device)
        for by in ("input", "kernel", "element"):
            scores = [score.contiguous() for score in reference.group_score(weights, _layouts(weights, by), "l2")]
            k = sum(score.numel() for score in scores) // 2
            yield Case(
                f"half, by {by}",
                workload,
                partial(ops.group_topk, scores, k),
                sum(score.numel() for score in scores) * 5,  # reads a float, writes a bool
                twin=partial(reference.group_topk, scores, k),
                peer=partial(_topk_scatter, scores, k),
                peer_name="cat + topk + scatter",
            )


def _layouts(weights: Sequence[Tensor], by: str) -> list[tuple[int, int, int, int]]:
    return [group_layout(w, by) for w in weights]


def _topk_scatter(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    flat = torch.cat([score.view(-1) for score in scores])
    indices = torch.topk(flat, k, sorted=False).indices
    mask = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device).scatter_(0, indices, True)
    return list(mask.split([score.numel() for score in scores]))
