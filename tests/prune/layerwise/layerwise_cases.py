"""Layers for the tests of layerwise_solve: random weights, Hessians of correlated inputs."""

from __future__ import annotations

import torch
from torch import Tensor


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(rows: int, columns: int, seed: int = 0, samples: int | None = None, dtype=torch.float64):
    """weight [R, C], Hessian [C, C] with decaying spectrum and very different scales of the inputs."""
    g = generator(seed)
    samples = 4 * columns if samples is None else samples
    inputs = torch.randn(samples, columns, generator=g, dtype=torch.float64)
    mix = torch.randn(columns, columns, generator=g, dtype=torch.float64) / columns**0.5
    spectrum = torch.linspace(0, 2, columns, dtype=torch.float64).exp()
    inputs = (inputs @ (mix * spectrum)) @ mix.T + 0.3 * inputs
    inputs *= torch.rand(columns, generator=g, dtype=torch.float64) + 0.3
    weight = torch.randn(rows, columns, generator=g, dtype=torch.float64)
    return weight.to(dtype), (inputs.T @ inputs / max(samples, 1)).to(dtype)


def error(weight: Tensor, sparse: Tensor, hessian: Tensor) -> float:
    change, weight, hessian = (sparse.double() - weight.double()), weight.double(), hessian.double()
    return float(torch.trace(change @ hessian @ change.T) / torch.trace(weight @ hessian @ weight.T))


def exact_refit(weight: Tensor, mask: Tensor, hessian: Tensor) -> Tensor:
    """The minimizer on a support, row by row."""
    weight, hessian = weight.double(), hessian.double()
    out = torch.zeros_like(weight)
    for row in range(weight.shape[0]):
        support = mask[row].nonzero().flatten()
        if support.numel():
            target = hessian[support] @ weight[row]
            out[row, support] = torch.linalg.solve(hessian[support][:, support], target)
    return out
