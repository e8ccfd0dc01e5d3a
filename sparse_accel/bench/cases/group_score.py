"""``group_score``: norms of the groups of a list of weights. One read of the weights is all it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from sparse_accel import ops, reference
from sparse_accel.bench.case import Case, Settings
from sparse_accel.bench.workloads import compiles, weights_of
from sparse_accel.groups import GroupLayout, group_layout


def cases(settings: Settings) -> Iterator[Case]:
    """Norms by input and output channel and of whole tensors, and the largest magnitude by input channel."""
    for workload in settings.workloads:
        weights = weights_of(workload, settings.torch_dtype, settings.device)
        bytes_moved = sum(w.numel() * w.element_size() for w in weights)
        for by, kind, peer, peer_name in (
            ("input", "l2", partial(_norms, weights, 1), "linalg.vector_norm"),
            ("output", "l2", partial(_norms, weights, 0), "linalg.vector_norm"),
            ("tensor", "l2", partial(torch._foreach_norm, weights), "_foreach_norm"),
            ("input", "amax", partial(_largest, weights), "abs + amax"),
        ):
            layouts = [GroupLayout(1, 1, w.numel()) if by == "tensor" else group_layout(w, by) for w in weights]
            run = partial(ops.group_score, weights, layouts, kind)
            yield Case(
                f"{kind} by {by}",
                workload,
                run,
                bytes_moved,
                twin=partial(reference.group_score, weights, layouts, kind),
                peer=peer,
                peer_name=peer_name,
                plain=peer if (by, kind) == ("input", "l2") and compiles(workload) else None,
                graph=run,
            )


def _norms(weights: Sequence[Tensor], channel: int) -> list[Tensor]:
    return [torch.linalg.vector_norm(w, dim=_others(w, channel)) for w in weights]


def _largest(weights: Sequence[Tensor]) -> list[Tensor]:
    return [w.abs().amax(_others(w, 1)) for w in weights]


def _others(weight: Tensor, channel: int) -> list[int]:
    return [dim for dim in range(weight.dim()) if dim != channel]
