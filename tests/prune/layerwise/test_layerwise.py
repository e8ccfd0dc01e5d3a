"""layerwise_solve: exact counts, optimality on the support, order of the methods, odd and bad layers."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layerwise_cases import error, exact_refit, layer

import sparse_accel as sa
from sparse_accel.prune import layerwise_solve
from sparse_accel.prune.layerwise.solve import DEFAULTS

METHODS = list(DEFAULTS)
COLUMNWISE = [method for method in METHODS if method not in ("sparsegpt", "obs")]
TARGETS = [0.5, 0.75, "2:4", "1:3", sa.Rows(0.5), sa.GroupSparsity(0.5, by="input"), sa.GroupSparsity(0.5, by="output")]


def solve(method, weight, hessian, target, **options):
    return layerwise_solve(weight, hessian, target, method=method, **options)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_keeps_what_was_asked_for_and_says_so(method, target, dtype):
    weight, hessian = layer(12, 24, dtype=dtype)
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
    for seed in range(2):
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


@pytest.mark.parametrize("by,shape", [("input", (6, 4, 2, 3)), ("kernel", (6, 4, 2, 3)), ("output", (6, 4, 2, 3))])
@pytest.mark.parametrize("method", ["iht", "magnitude", "admm"])
def test_groups_of_a_convolution(method, by, shape):
    weight, hessian = layer(6, 24)
    sparse = solve(method, weight, hessian, sa.GroupSparsity(0.5, by), shape=shape)
    view = (sparse != 0).view(6, 4, 6)
    alive = {"input": view.any(2).any(0), "output": view.any(2).any(1), "kernel": view.any(2).flatten()}[by]
    assert int(alive.sum()) == alive.numel() // 2
    assert int(view.sum()) == sparse.info.kept == 72


def test_outputs_and_inputs_against_all_choices():
    weight, hessian = layer(6, 6)
    for by in ("output", "input"):
        errors = []
        for kept in itertools.combinations(range(6), 3):
            mask = torch.zeros(6, dtype=torch.bool).index_fill_(0, torch.tensor(kept), True)
            mask = (mask[:, None] if by == "output" else mask[None]).expand(6, 6)
            errors.append(error(weight, exact_refit(weight, mask, hessian), hessian))
        found = solve("iht", weight, hessian, sa.GroupSparsity(0.5, by), damping=0.0).info.error
        assert found <= min(errors) * (1.000001 if by == "output" else 1.3)


def test_obs_removes_what_hurts_least():
    """Each removal of the exact greedy method is the best single one, the others readjusted."""
    weight, hessian = layer(2, 6)
    expected = torch.ones(2, 6, dtype=torch.bool)
    for row in range(2):
        for _ in range(3):
            trials = []
            for column in expected[row].nonzero().flatten().tolist():
                mask = expected[row].clone()
                mask[column] = False
                refit = exact_refit(weight[row : row + 1], mask[None], hessian)
                trials.append((error(weight[row : row + 1], refit, hessian), column))
            expected[row, min(trials)[1]] = False
    sparse = solve("obs", weight, hessian, sa.Rows(0.5), damping=0.0)
    assert torch.equal(sparse != 0, expected)
    torch.testing.assert_close(sparse, exact_refit(weight, expected, hessian))


def test_sparsegpt_compensates_to_the_right():
    """With the masks given, SparseGPT's weights are those of OBS on the columns not passed yet, one after the other."""
    weight, hessian = layer(3, 8)
    sparse = solve("sparsegpt", weight, hessian, 0.5, damping=0.0)
    mask, current = sparse != 0, weight.clone()
    for i in range(8):
        inverse = torch.linalg.inv(hessian[i:, i:])
        removed = current[:, i] * ~mask[:, i]
        current[:, i:] -= removed[:, None] / inverse[0, 0] * inverse[0]
    torch.testing.assert_close(sparse, current * mask, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_dead_inputs_go_first(method):
    weight, hessian = layer(8, 16, dtype=torch.float32)
    dead = torch.tensor([2, 3, 11])
    hessian[dead] = 0
    hessian[:, dead] = 0
    sparse = solve(method, weight, hessian, 0.5)
    assert sparse.info.dead_inputs == 3
    assert int((sparse != 0).sum()) == 64
    if method == "magnitude":
        return
    assert not bool(sparse[:, dead].any())
    light = solve(method, weight, hessian, 0.05)  # fewer than there are: the rest stay as they were
    assert light.info.error < 1e-9
    kept = light[:, dead] != 0
    assert torch.equal(light[:, dead][kept], weight[:, dead][kept])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["singular", "rank 1", "float16", "all dead", "no weights", "tall", "wide", "1x1"])
def test_odd_layers(method, kind):
    weight, hessian = layer(8, 24, dtype=torch.float32)
    if kind == "singular":
        hessian = layer(8, 24, samples=6, dtype=torch.float32)[1]
    elif kind == "rank 1":
        hessian = torch.ones(24, 24)
    elif kind == "float16":
        weight, hessian = weight.half(), hessian.half()
    elif kind == "all dead":
        hessian = torch.zeros(24, 24)
    elif kind == "no weights":
        weight = torch.zeros(8, 24)
    elif kind == "tall":
        weight, hessian = layer(500, 3, dtype=torch.float32)
    elif kind == "wide":
        weight, hessian = layer(2, 130, dtype=torch.float32)
    else:
        weight, hessian = torch.ones(1, 1), torch.ones(1, 1)
    sparse = solve(method, weight, hessian, 0.5)
    assert sparse.dtype == weight.dtype
    assert bool(torch.isfinite(sparse).all())
    assert int((sparse != 0).sum()) == (0 if kind == "no weights" else weight.numel() - round(weight.numel() / 2))
    assert -1e-5 <= sparse.info.error < 0.5 or kind == "1x1"


@pytest.mark.parametrize("method", METHODS)
def test_columns_that_m_does_not_divide(method):
    weight, hessian = layer(5, 14)
    kept = solve(method, weight, hessian, "2:4") != 0
    assert bool((kept[:, :12].reshape(-1, 4).sum(1) == 2).all())
    assert bool(kept[:, 12:].all())
    kept = solve(method, weight, hessian, "1:8") != 0
    assert bool((kept[:, :8].sum(1) == 1).all())
    assert bool((kept[:, 8:].sum(1) == 1).all())


@pytest.mark.parametrize("method", METHODS)
def test_nothing_and_everything(method):
    weight, hessian = layer(4, 8)
    everything = solve(method, weight, hessian, 0.0)
    assert torch.equal(everything, weight)
    assert everything.info.error == 0.0
    assert everything.data_ptr() != weight.data_ptr()
    nothing = solve(method, weight, hessian, 1)
    assert not bool(nothing.any())
    assert nothing.info.error == 1.0
    assert solve(method, weight[:0], hessian, 0.5).shape == (0, 8)
    assert solve(method, weight[:, :0], hessian[:0, :0], 0.5).shape == (4, 0)


def test_same_result_again_and_whatever_the_scale():
    weight, hessian = layer(16, 32, dtype=torch.float32)
    first, second = (layerwise_solve(weight, hessian, 0.6, seed=seed) for seed in (0, 1))
    assert torch.equal(first, second)
    scaled = layerwise_solve(weight * 4.0, hessian * 2.0**-20, 0.6)
    assert torch.equal(scaled, first * 4.0)
    in_double = layerwise_solve(weight.double(), hessian.double(), 0.6)
    assert in_double.dtype == torch.float64
    assert in_double.info.error == pytest.approx(first.info.error, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(dtype):
    weight, hessian = layer(16, 32, dtype=torch.float32)
    sparse = layerwise_solve(weight.to(dtype), hessian, "2:4")
    assert sparse.dtype == dtype
    wide = layerwise_solve(weight.to(dtype).float(), hessian, "2:4")
    assert torch.equal(sparse, wide.to(dtype))
    assert sparse.info.error == pytest.approx(error(weight.to(dtype), sparse, hessian), rel=1e-9)


def test_damping_escalates_and_is_told(caplog):
    weight, hessian = layer(8, 16, dtype=torch.float32)
    hessian = hessian - 2e-3 * hessian.diagonal().mean() * torch.eye(16)
    hessian = hessian - 1.001 * min(0.0, float(torch.linalg.eigvalsh(hessian)[0])) * torch.eye(16)
    hessian -= 5e-4 * hessian.diagonal().mean() * torch.eye(16)  # least eigenvalue -5e-4 of the mean
    with caplog.at_level("WARNING", "sparse_accel"):
        info = layerwise_solve(weight, hessian, 0.5, damping=1e-5).info
    assert info.damping_asked == 1e-5
    assert info.damping == pytest.approx(1e-3)
    assert "1e-05" in caplog.text
    assert "0.001" in caplog.text
    with pytest.raises(ValueError, match="positive semidefinite"):
        layerwise_solve(weight, torch.full((16, 16), 2.0) - torch.eye(16), 0.5)


@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 20),
    sparsity=st.floats(0, 1) | st.sampled_from(["1:2", "2:4", "3:5", "4:32"]) | st.floats(0, 1).map(sa.Rows),
    iterations=st.integers(1, 9),
    seed=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_any_shape(rows, columns, sparsity, iterations, seed):
    weight, hessian = layer(rows, columns, seed, dtype=torch.float32)
    sparse = layerwise_solve(weight, hessian, sparsity, iterations)
    assert sparse.shape == weight.shape
    assert int((sparse != 0).sum()) == sparse.info.kept
    assert sparse.info.error <= layerwise_solve(weight, hessian, sparsity, method="magnitude").info.error * 1.05 + 1e-6


BAD = {
    "weight: expected \\[R, C\\]": {"weight": torch.ones(4)},
    "weight: expected a floating": {"weight": torch.ones(2, 3, dtype=torch.int64)},
    "weight: expected finite": {"weight": torch.tensor([[1.0, float("nan"), 2.0]])},
    "hessian: expected \\[3, 3\\]": {"hessian": torch.eye(4)},
    "hessian: expected finite": {"hessian": torch.eye(3) * float("inf")},
    "hessian: expected a diagonal": {"hessian": -torch.eye(3)},
    "hessian: expected a symmetric": {"hessian": torch.eye(3) + torch.ones(3, 3).triu()},
    "sparsity: expected a number in": {"sparsity": 1.5},
    "sparsity: expected a number in ": {"sparsity": float("nan")},
    'sparsity: expected "n:m"': {"sparsity": "4:2"},
    'sparsity: expected "n:m" ': {"sparsity": "half"},
    "sparsity: expected a number, ": {"sparsity": None},
    "iterations: expected": {"iterations": 0},
    "method: expected": {"method": "lasso"},
    "refit: expected": {"refit": -1},
    "damping: expected": {"damping": -1.0},
    "damping: expected ": {"damping": float("nan")},
    "shape: expected": {"shape": (2, 2), "sparsity": sa.GroupSparsity(0.5)},
}


@pytest.mark.parametrize("message", BAD)
def test_refusals(message):
    arguments = {"weight": torch.ones(2, 3), "hessian": torch.eye(3), "sparsity": 0.5} | BAD[message]
    with pytest.raises(ValueError, match=message.strip()):
        layerwise_solve(**arguments)


def test_refuses_what_is_no_tensor():
    with pytest.raises(TypeError, match="hessian"):
        layerwise_solve(torch.ones(2, 3), [[1.0]])
    for wrong in (lambda: sa.Rows(-0.1), lambda: sa.Rows(True), lambda: sa.GroupSparsity(2.0)):
        with pytest.raises(ValueError, match="sparsity"):
            wrong()
    with pytest.raises(ValueError, match="by: expected"):
        sa.GroupSparsity(0.5, by="head")


def test_autocast_leaves_the_algebra_alone():
    weight, hessian = layer(8, 16, dtype=torch.float32)
    plain = layerwise_solve(weight, hessian, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layerwise_solve(weight, hessian, 0.5), plain)
