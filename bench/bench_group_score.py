"""``group_score``: norms of the groups of a list of weights. One read of the weights is all it needs.

python -m bench.bench_group_score [--device cuda] [--dtype bfloat16] [--json FILE]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from sparse_accel import ops, reference
from sparse_accel.groups import GroupLayout, group_layout

from . import harness
from .workloads import tensors


def cases(settings: harness.Settings) -> Iterator[harness.Case]:
    """Norms by input and output channel and of whole tensors, and the largest magnitude by input channel."""
    for workload in settings.workloads:
        weights = tensors(workload, settings.torch_dtype, settings.device)
        bytes_moved = sum(w.numel() * w.element_size() for w in weights)
        for by, kind, peer, peer_name in (
            ("input", "l2", partial(_norms, weights, 1), "linalg.vector_norm"),
            ("output", "l2", partial(_norms, weights, 0), "linalg.vector_norm"),
            ("tensor", "l2", partial(torch._foreach_norm, weights), "_foreach_norm"),
            ("input", "amax", partial(_largest, weights), "abs + amax"),
        ):
            layouts = [GroupLayout(1, 1, w.numel()) if by == "tensor" else group_layout(w, by) for w in weights]
            run = partial(ops.group_score, weights, layouts, kind)
            yield harness.Case(
                f"{kind} by {by}",
                workload,
                run,
                bytes_moved,
                twin=partial(reference.group_score, weights, layouts, kind),
                peer=peer,
                peer_name=peer_name,
                graph=run,
            )


def _norms(weights: Sequence[Tensor], channel: int) -> list[Tensor]:
    return [torch.linalg.vector_norm(w, dim=_others(w, channel)) for w in weights]


def _largest(weights: Sequence[Tensor]) -> list[Tensor]:
    return [w.abs().amax(_others(w, 1)) for w in weights]


def _others(weight: Tensor, channel: int) -> list[int]:
    return [dim for dim in range(weight.dim()) if dim != channel]


def main(argv: Sequence[str] | None = None) -> int:
    """Run this bench alone."""
    return harness.bench_main({"group_score": cases}, argv, __doc__ or "")[0]


if __name__ == "__main__":
    sys.exit(main())
