"""Least squares under group lasso, by exact gradients: adaptive methods end where plain proximal gradient steps do. The
metric changes the way, not the goal."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import sparse_accel as sa
from sparse_accel import reference
from sparse_accel.groups import group_layout

STRENGTH = 0.15


def problem(by: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The gradient of the smooth part, and the minimizer [4, 12]."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(60, 12, generator=generator, dtype=torch.float64) * torch.logspace(-1, 0.3, 12)
    sizes = torch.tensor([1.0, 0.02, 1.5, 1.0])
    targets = data @ (torch.randn(12, 4, generator=generator, dtype=torch.float64) * sizes)

    def gradient(weight: Tensor) -> Tensor:
        return (weight @ data.T - targets.T) @ data / 60

    best = torch.zeros(4, 12, dtype=torch.float64)
    rate = 60 / torch.linalg.matrix_norm(data, 2).item() ** 2
    for _ in range(6000):
        best = best - rate * gradient(best)
        reference.prox_([best], [group_layout(best, by)], [rate * STRENGTH])
    assert 0 < best.eq(0).sum() < best.numel()
    return gradient, best


@pytest.mark.parametrize("by", ["input", "output", "element"])
def test_ramda(by: str) -> None:
    gradient, best = problem(by)
    weight = Parameter(torch.zeros_like(best))
    opt = sa.RAMDA([weight], lr=0.05, momentum=1.0, penalty=sa.GroupLasso(STRENGTH, by=by))
    for _stage in range(8):
        for _ in range(400):
            weight.grad = gradient(weight.detach())
            opt.step()
        opt.restart()
    torch.testing.assert_close(weight.detach(), best, rtol=1e-2, atol=5e-3)
    assert torch.equal(weight == 0, best == 0)


@pytest.mark.parametrize("by", ["input", "output", "element"])
def test_prox_adamw(by: str) -> None:
    gradient, best = problem(by)
    weight = Parameter(torch.zeros_like(best))
    opt = sa.ProxAdamW([weight], lr=0.02, eps=0.1, weight_decay=0, penalty=sa.GroupLasso(STRENGTH, by=by))
    for step in range(3000):
        weight.grad = gradient(weight.detach())
        opt.param_groups[0]["lr"] = 0.02 * (1 - step / 3000)
        opt.step()
    torch.testing.assert_close(weight.detach(), best, rtol=1e-3, atol=1e-3)
    assert torch.equal(weight == 0, best == 0)
