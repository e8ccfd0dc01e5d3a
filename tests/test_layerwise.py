"""layerwise_solve: exact counts, optimality on the support, order of the methods, odd and bad layers."""

from __future__ import annotations

import itertools

import pytest
import torch
from layerwise_cases import error, exact_refit, layer

import sparse_accel as sa
from sparse_accel.prune import layerwise_solve
from sparse_accel.prune.layerwise import DEFAULTS

METHODS = list(DEFAULTS)
COLUMNWISE = [method for method in METHODS if method not in ("sparsegpt", "obs")]
TARGETS = [0.5, 0.75, "2:4", "1:3", sa.Rows(0.5), sa.GroupSparsity(0.5, by="input"), sa.GroupSparsity(0.5, by="output")]


def solve(method, weight, hessian, target, **options):
    return layerwise_solve(weight, hessian, target, method=method, **options)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_keeps_what_was_asked_for_and_says_so(method, target):
    weight, hessian = layer(12, 24, dtype=torch.float32)
    if isinstance(target, sa.GroupSparsity) and method not in COLUMNWISE:
        with pytest.raises(ValueError, match="sparsity"):
            solve(method, weight, hessian, target)
        return
    before = weight.clone(), hessian.clone()
    sparse = solve(method, weight, hessian, target)
    assert type(sparse) is torch.Tensor
    assert sparse.dtype == weight.dtype
    info = sparse.info
    assert int((sparse != 0).sum()) == info.kept
    assert info.sparsity == pytest.approx(1 - info.kept / weight.numel())
    assert info.error == pytest.approx(error(weight, sparse, hessian), rel=1e-9)
    assert info.method == method
    assert info.damping == info.damping_asked == DEFAULTS[method].damping
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])
    if target == "2:4":
        assert bool(((sparse.view(-1, 4) != 0).sum(1) == 2).all())
    elif isinstance(target, sa.Rows):
        assert bool(((sparse != 0).sum(1) == 12).all())
    elif isinstance(target, sa.GroupSparsity):
        assert int((sparse != 0).any(0 if target.by == "input" else 1).sum()) == (12 if target.by == "input" else 6)


@pytest.mark.parametrize("target", [0.5, 0.7, "2:4", sa.Rows(0.5)], ids=str)
def test_order_of_the_methods(target):
    for seed in range(3):
        weight, hessian = layer(32, 64, seed)
        errors = [solve(method, weight, hessian, target).info.error for method in ("magnitude", "sparsegpt", "iht")]
        assert errors[0] > errors[1] > errors[2]
        assert solve("sparsegpt", weight, hessian, target, refit=20).info.error < errors[1]
        assert solve("iht", weight, hessian, target, iterations=32).info.error < 1.01 * errors[2]


@pytest.mark.parametrize("method", METHODS)
def test_refit_is_optimal_on_the_support(method):
    weight, hessian = layer(8, 16)
    sparse = solve(method, weight, hessian, 0.5, refit=60, damping=0.0)
    mask = sparse != 0
    gradient = (sparse - weight) @ hessian
    assert float(gradient[mask].abs().max()) < 1e-8 * float((weight @ hessian).abs().max())
    torch.testing.assert_close(sparse, exact_refit(weight, mask, hessian), rtol=1e-6, atol=1e-8)


def test_close_to_the_best_support():
    worst = 1.0
    for seed in range(5):
        weight, hessian = layer(1, 8, seed)
        best = min(
            error(weight, exact_refit(weight, mask[None], hessian), hessian)
            for chosen in itertools.combinations(range(8), 4)
            for mask in [torch.zeros(8, dtype=torch.bool).index_fill_(0, torch.tensor(chosen), True)]
        )
        found = solve("iht", weight, hessian, 0.5, iterations=32, refit=20, damping=0.0).info.error
        assert found >= best * (1 - 1e-9)
        worst = max(worst, found / best)
    assert worst < 1.6


@pytest.mark.parametrize("method", [method for method in METHODS if method != "admm"])  # which may end in a cycle
def test_uncorrelated_inputs_keep_the_largest_damage(method):
    weight, _ = layer(4, 10)
    scale = torch.linspace(0.5, 2, 10, dtype=torch.float64)
    sparse = solve(method, weight, torch.diag(scale), sa.Rows(0.5), damping=0.0)
    expected = weight.square() * (1 if method == "magnitude" else scale)
    kept = expected.topk(5, 1).indices.sort().values
    assert torch.equal((sparse != 0).nonzero()[:, 1].view(4, 5), kept)
    torch.testing.assert_close(sparse[sparse != 0], weight[sparse != 0])
