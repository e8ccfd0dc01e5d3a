"""``group_topk``: the mask of the k largest scores over a whole list, exact, ties to the lowest index.

python -m bench.bench_group_topk [--device cuda] [--json FILE]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from sparse_accel import ops, reference
from sparse_accel.groups import group_layout

from . import harness
from .workloads import tensors


def cases(settings: harness.Settings) -> Iterator[harness.Case]:
    """Half of all groups, scored by input channel, by kernel, and every weight on its own."""
    for workload in settings.workloads:
        weights = tensors(workload, torch.float32, settings.device)
        for by in ("input", "kernel", "element"):
            scores = [score.contiguous() for score in reference.group_score(weights, _layouts(weights, by), "l2")]
            k = sum(score.numel() for score in scores) // 2
            yield harness.Case(
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run this bench alone."""
    return harness.bench_main({"group_topk": cases}, argv, __doc__ or "")[0]


if __name__ == "__main__":
    sys.exit(main())
