"""Block backward elimination: neurons, channels of a 3 x 3 convolution, attention heads.

The peer is what comes before it, Cholesky and the inverse of the same matrix. Half of the units go.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from sparse_accel import reference
from sparse_accel.bench.case import Case, Settings
from sparse_accel.ops.gram_obs import gram_obs

# name -> units, block, outputs
SIZES = {
    "1536 neurons": (1536, 1, 384),
    "128 channels": (128, 9, 128),
    "256 channels": (256, 9, 256),
    "12 heads": (12, 64, 768),
}
TWIN_UNITS = 16  # the twin writes every downdate out, and is for few


def cases(settings: Settings) -> Iterator[Case]:
    """Elimination of half of the units; the dtype is float64 always."""
    tiny = tuple(settings.workloads) == ("tiny",)
    for name, (units, block, outputs) in ({"tiny": (6, 2, 3)} if tiny else SIZES).items():
        gram, inverse, weight = problem(units * block, outputs, settings.device)
        arguments = (inverse[None], weight[None], block, units // 2, None)
        yield Case(
            f"Gram-OBS, block {block}",
            name,
            partial(gram_obs, *arguments),
            (inverse.numel() + weight.numel()) * 8,
            twin=partial(reference.gram_obs, *arguments) if units <= TWIN_UNITS else None,
            peer=partial(inverted, gram),
            peer_name="Cholesky, inverse",
        )


def problem(n: int, outputs: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """A Gram matrix with its ridge, its inverse, weights."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, 2 * n, generator=generator, dtype=torch.float64, device="cpu").to(device)
    gram = hidden @ hidden.T / (2 * n) + 1e-3 * torch.eye(n, dtype=torch.float64, device=device)
    weight = torch.randn(outputs, n, generator=generator, dtype=torch.float64, device="cpu").to(device)
    return gram, inverted(gram), weight


def inverted(gram: Tensor) -> Tensor:
    """The inverse of a positive definite matrix."""
    return torch.cholesky_inverse(torch.linalg.cholesky(gram))
