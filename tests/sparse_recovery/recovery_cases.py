"""Made problems of sparse recovery, and independent solutions."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor


def planted(
    batch: int = 0,
    rows: int = 256,
    size: int = 128,
    nonzeros: int = 16,
    noise: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    least: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """A, b and theta as in the paper's simulation; ``least`` is added to the magnitude of the nonzeros."""
    generator = torch.Generator().manual_seed(seed)
    count = max(batch, 1)
    A = torch.randn(count, rows, size, generator=generator, dtype=torch.float64) / rows**0.5
    values = torch.randn(count, nonzeros, generator=generator, dtype=torch.float64)
    places = torch.rand(count, size, generator=generator).argsort(1)[:, :nonzeros]
    theta = torch.zeros(count, size, dtype=torch.float64).scatter_(1, places, values + least * values.sign())
    b = (A @ theta[..., None])[..., 0] + noise * torch.randn(count, rows, generator=generator, dtype=torch.float64)
    found = (A.to(dtype), b.to(dtype), theta.to(dtype))
    return found if batch else (found[0][0], found[1][0], found[2][0])


def loss_of(A: Tensor, b: Tensor, theta: Tensor) -> Tensor:
    return 0.5 * ((A @ theta[..., None])[..., 0] - b).square().mean(-1)


def on_support(A: Tensor, b: Tensor, support: Tensor) -> Tensor:
    """Least squares on the true places, by numpy."""
    if A.dim() == 3:
        return torch.stack([on_support(*one) for one in zip(A, b, support, strict=True)])
    theta = torch.zeros(A.shape[1], dtype=A.dtype)
    places = support.nonzero().flatten()
    theta[places] = torch.from_numpy(np.linalg.lstsq(A[:, places].numpy(), b.numpy(), rcond=None)[0])
    return theta


def best_subset(A: Tensor, b: Tensor, k: int) -> tuple[Tensor, float]:
    """The best of all supports of k places."""
    best, least = torch.zeros(A.shape[1], dtype=A.dtype), float("inf")
    for places in itertools.combinations(range(A.shape[1]), k):
        support = torch.zeros(A.shape[1], dtype=torch.bool)
        support[list(places)] = True
        theta = on_support(A, b, support)
        loss = float(loss_of(A, b, theta))
        if loss < least:
            best, least = theta, loss
    return best, least
