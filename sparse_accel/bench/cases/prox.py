"""``prox_``: proximal operators in place on a list of weights. One read and one write are all it needs.

The peer is what one would write in PyTorch: norms, a clamped factor, a product in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from sparse_accel import ops, reference
from sparse_accel.bench.case import Case, Settings
from sparse_accel.bench.workloads import compiles, weights_of
from sparse_accel.groups import group_layout

TAU = 1e-7  # so small that the weights keep their size over all rounds


def cases(settings: Settings) -> Iterator[Case]:
    """Group soft thresholds by input and output channel, soft thresholds of elements, group hard thresholds."""
    for workload in settings.workloads:
        weights = weights_of(workload, settings.torch_dtype, settings.device)
        bytes_moved = 2 * sum(w.numel() * w.element_size() for w in weights)
        taus = [TAU] * len(weights)
        for by, prox, peer, peer_name in (
            ("input", "soft", partial(_group_soft_, weights, 1), "vector_norm, mul_"),
            ("output", "soft", partial(_group_soft_, weights, 0), "vector_norm, mul_"),
            ("element", "soft", partial(_soft_, weights), "softshrink, copy_"),
            ("input", "hard", partial(_group_hard_, weights), "square, sum, mul_"),
        ):
            layouts = [group_layout(w, by) for w in weights]
            run = partial(ops.prox_, weights, layouts, taus, prox=prox)
            yield Case(
                f"{prox} by {by}",
                workload,
                run,
                bytes_moved,
                twin=partial(reference.prox_, weights, layouts, taus, prox=prox),
                peer=peer,
                peer_name=peer_name,
                plain=peer if (by, prox) == ("input", "soft") and compiles(workload) else None,
                graph=run,
            )


def _others(weight: Tensor, channel: int) -> list[int]:
    return [dim for dim in range(weight.dim()) if dim != channel]


def _group_soft_(weights: Sequence[Tensor], channel: int) -> None:
    for w in weights:
        threshold = TAU * (w.numel() // w.shape[channel]) ** 0.5
        norms = torch.linalg.vector_norm(w, dim=_others(w, channel), keepdim=True)
        w.mul_((1 - threshold / norms).clamp_(min=0))


def _soft_(weights: Sequence[Tensor]) -> None:
    for w in weights:
        w.copy_(torch.nn.functional.softshrink(w, TAU))


def _group_hard_(weights: Sequence[Tensor]) -> None:
    for w in weights:
        squares = w.square().sum(_others(w, 1), keepdim=True)
        w.mul_(squares > 2 * TAU * (w.numel() // w.shape[1]))
