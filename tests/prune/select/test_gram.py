"""Selection and refit by second moments: optimality, brute force, invariances, refusals."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparse_accel.prune import GramSelection, energy_select, gram_cosamp, gram_obs, refit
from sparse_accel.prune.select import gram_problem

METHODS = [gram_obs, gram_cosamp, energy_select]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(units: int, block: int, outputs: int, seed: int, groups: int = 0) -> dict[str, Tensor]:
    """Correlated activations H, targets T that W0 misses by noise, and their moments."""
    n, lead = units * block, (groups,) if groups else ()
    hidden = randn(*lead, n, n, seed=seed) @ randn(*lead, n, 3 * n, seed=seed + 1)
    weight = randn(*lead, outputs, n, seed=seed + 2)
    target = weight @ hidden + randn(*lead, outputs, 3 * n, seed=seed + 3)
    return {"H": hidden, "T": target, "gram": hidden @ hidden.mT, "cross": target @ hidden.mT, "weight": weight}


def moments(arrays: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return arrays["gram"], arrays["cross"], arrays["weight"]


def columns_of(units: Any, block: int) -> Tensor:
    return (torch.as_tensor(list(units), dtype=torch.int64)[:, None] * block + torch.arange(block)).flatten()


def loss(arrays: dict[str, Tensor], units: Any, fitted: Tensor, block: int, delta: float) -> float:
    """f_S with all columns: what is not in S is zero."""
    full = torch.zeros_like(arrays["weight"])
    full[:, columns_of(units, block)] = fitted
    error = (arrays["T"] - full @ arrays["H"]).square().sum()
    return float(error + delta * (full - arrays["weight"]).square().sum())


def least_loss(arrays: dict[str, Tensor], units: Any, block: int, ridge: float) -> float:
    fitted = refit(*moments(arrays), torch.tensor(sorted(units), dtype=torch.int64), block=block, ridge=ridge)
    return loss(arrays, sorted(units), fitted, block, ridge * float(arrays["gram"].diagonal().mean()))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(0, 10**6), st.sampled_from([0.0, 1e-3, 1.0])
)
def test_each_removal_is_the_best_one(units: int, block: int, outputs: int, seed: int, ridge: float) -> None:
    """Brute force: remove each unit in turn and refit."""
    ridge = (0.0, 1e-3, 1.0)[seed % 3]
    arrays = data(units, block, outputs, seed)
    found = gram_obs(*moments(arrays), block=block, keep=1, ridge=ridge, until=0)
    left = list(range(units))
    base = least_loss(arrays, left, block, ridge)
    size = float(arrays["T"].square().sum())
    for unit, damage in zip(found.order.tolist(), found.damages.tolist(), strict=True):
        losses = {u: least_loss(arrays, [v for v in left if v != u], block, ridge) for u in left}
        assert losses[unit] <= min(losses.values()) + 1e-8 * size
        assert losses[unit] - base == pytest.approx(damage, rel=1e-6, abs=1e-8 * size)
        left.remove(unit)
        base = losses[unit]
    assert not left


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.integers(0, 10**6), st.data())
def test_refit_is_optimal(units: int, block: int, outputs: int, seed: int, draw: st.DataObject) -> None:
    """The gradient of f_S vanishes: ``W (G_SS + delta I) = M_S + delta W0_S``."""
    arrays = data(units, block, outputs, seed)
    kept = sorted(draw.draw(st.sets(st.integers(0, units - 1), min_size=1)))
    ridge = draw.draw(st.sampled_from([1e-8, 1e-3, 0.1]))
    fitted = refit(*moments(arrays), torch.tensor(kept), block=block, ridge=ridge)
    at = columns_of(kept, block)
    delta = ridge * arrays["gram"].diagonal().mean()
    right = arrays["cross"][:, at] + delta * arrays["weight"][:, at]
    gradient = fitted @ arrays["gram"][at][:, at] + delta * fitted - right
    assert float(gradient.abs().max()) <= 1e-9 * float(right.abs().max())


def test_refit_limits() -> None:
    """No ridge: plain least squares. A huge one: the old weights. All units and T = W0 H: W0 itself."""
    arrays = data(5, 2, 3, 0)
    kept, at = torch.tensor([0, 3]), columns_of([0, 3], 2)
    expected = torch.linalg.lstsq(arrays["H"][at].T, arrays["T"].T).solution.T
    torch.testing.assert_close(refit(*moments(arrays), kept, block=2, ridge=0.0), expected)
    old = refit(*moments(arrays), kept, block=2, ridge=1e12)
    torch.testing.assert_close(old, arrays["weight"][:, at], rtol=1e-6, atol=1e-6)
    gram, _, weight = moments(arrays)
    torch.testing.assert_close(refit(gram, weight @ gram, weight, torch.arange(5), block=2), weight)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("block", [1, 3])
def test_selections_are_consistent(method: Any, block: int) -> None:
    arrays = data(8, block, 4, 5)
    found = method(*moments(arrays), block=block, keep=3)
    assert isinstance(found, GramSelection)
    assert found.units == 8
    assert found.kept.dtype == torch.int64
    assert len(found.kept) == 3
    assert bool((found.kept.diff() > 0).all())
    assert torch.equal(found.weight, refit(*moments(arrays), found.kept, block=block))
    left = arrays["T"] - found.weight @ arrays["H"][columns_of(found.kept, block)]
    energy = float(arrays["T"].square().sum())
    assert energy - found.explained == pytest.approx(float(left.square().sum()), rel=1e-8)
    assert found.delta == (pytest.approx(1e-3 * float(arrays["gram"].diagonal().mean())),)
    if method is not gram_cosamp:
        assert len(found.order) == len(found.damages) == 5
        assert torch.equal(found.at(3), found.kept)
        assert found.at(8).tolist() == list(range(8))
        with pytest.raises(ValueError, match=r"keep: expected 3 to 8, got 2"):
            found.at(2)


@pytest.mark.parametrize("block", [1, 4])
def test_any_keep_is_read_off_one_run(block: int) -> None:
    arrays = data(9, block, 5, 11)
    whole = gram_obs(*moments(arrays), block=block, keep=9, until=0)
    assert sorted(whole.order.tolist()) == list(range(9))
    for keep in range(1, 10):
        one = gram_obs(*moments(arrays), block=block, keep=keep)
        assert torch.equal(one.kept, whole.at(keep))
        assert torch.equal(one.order, whole.order[: 9 - keep])
    assert float(whole.damages.min()) >= 0
    rise = least_loss(arrays, [], block, 1e-3) - least_loss(arrays, range(9), block, 1e-3)
    assert float(whole.damages.sum()) == pytest.approx(rise, rel=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_scales_and_order_do_not_matter(method: Any) -> None:
    arrays = data(7, 2, 4, 21)
    gram, cross, weight = moments(arrays)
    found = method(gram, cross, weight, block=2, keep=3)
    for other in (
        method(gram / 1e6, cross / 1e6, weight, block=2, keep=3),  # means in place of sums
        method(gram, 7 * cross, 7 * weight, block=2, keep=3),
        method(gram.float().double(), cross.float(), weight.float(), block=2, keep=3),
    ):
        assert torch.equal(other.kept, found.kept)
    torch.testing.assert_close(method(gram, 7 * cross, 7 * weight, block=2, keep=3).weight, 7 * found.weight)
    rotation = torch.linalg.qr(randn(4, 4)).Q
    assert torch.equal(method(gram, rotation @ cross, rotation @ weight, block=2, keep=3).kept, found.kept)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    at = columns_of(order, 2)
    permuted = method(gram[at][:, at], cross[:, at], weight[:, at], block=2, keep=3)
    assert order[permuted.kept].sort().values.tolist() == found.kept.tolist()


def test_rotation_inside_units_does_not_matter() -> None:
    """Gram-OBS sees the spaces that units span, not their bases."""
    gram, cross, weight = moments(data(6, 3, 4, 31))
    turn = torch.block_diag(*(torch.linalg.qr(randn(3, 3, seed=i)).Q for i in range(6)))
    plain = gram_obs(gram, cross, weight, block=3, keep=2)
    turned = gram_obs(turn @ gram @ turn.T, cross @ turn.T, weight @ turn.T, block=3, keep=2)
    assert torch.equal(turned.order, plain.order)
    torch.testing.assert_close(turned.damages, plain.damages, rtol=1e-8, atol=0)


def test_units_that_carry_nothing_go_first() -> None:
    """A dead unit, a copy of another, one without weight."""
    arrays = data(6, 1, 3, 41)
    hidden, weight = arrays["H"].clone(), arrays["weight"].clone()
    hidden[2] = 0
    hidden[4] = hidden[1]
    weight[:, 5] = 0
    gram = hidden @ hidden.T
    found = gram_obs(gram, weight @ gram, weight, keep=3, ridge=1e-8)
    assert set(found.order.tolist()) <= {1, 2, 4, 5}
    assert float(found.damages.sum()) < 1e-5 * found.explained
    torch.testing.assert_close(found.explained, float((weight @ hidden).square().sum()), rtol=1e-5, atol=0)


def test_against_all_subsets() -> None:
    """Greedy elimination is near the best of all subsets, and ahead of the weights' energies on average."""
    ratios: dict[Any, list[float]] = {method: [] for method in METHODS}
    for seed in range(8):
        arrays = data(7, 1, 3, 100 + 10 * seed)
        best = min(least_loss(arrays, kept, 1, 1e-3) for kept in itertools.combinations(range(7), 3))
        for method in METHODS:
            kept = method(*moments(arrays), keep=3).kept.tolist()
            ratios[method].append(least_loss(arrays, kept, 1, 1e-3) / best)
    mean = {method: sum(values) / len(values) for method, values in ratios.items()}
    assert all(min(values) >= 1 - 1e-9 for values in ratios.values())
    assert mean[gram_obs] < 1.2
    assert mean[gram_obs] <= mean[gram_cosamp] <= mean[energy_select]


@pytest.mark.parametrize("method", METHODS)
def test_grouped_consumers(method: Any) -> None:
    """Each group is a problem of its own."""
    arrays = data(4, 2, 3, 51, groups=3)
    found = method(*moments(arrays), block=2, keep=6)
    assert torch.bincount(found.kept // 4).tolist() == [2, 2, 2]
    assert found.weight.shape == (3, 3, 4)
    explained = 0.0
    for g in range(3):
        one = method(arrays["gram"][g], arrays["cross"][g], arrays["weight"][g], block=2, keep=2)
        assert torch.equal(one.kept + 4 * g, found.kept[2 * g : 2 * g + 2])
        torch.testing.assert_close(one.weight, found.weight[g])
        explained += one.explained
        if method is gram_obs:
            assert torch.equal(found.order[g::3], one.order + 4 * g)
            torch.testing.assert_close(found.damages[g::3], one.damages)
    assert found.explained == pytest.approx(explained)
    torch.testing.assert_close(refit(*moments(arrays), found.kept, block=2), found.weight)
    with pytest.raises(ValueError, match=r"keep: expected a multiple of 3, the number of sets kept alike, got 4"):
        method(*moments(arrays), block=2, keep=4)


@pytest.mark.parametrize("method", METHODS)
def test_balance(method: Any) -> None:
    arrays = data(8, 2, 3, 61)
    sets = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    for balance, number in ((4, torch.arange(8) // 2), (sets, sets)):
        found = method(*moments(arrays), block=2, keep=4, balance=balance)
        assert torch.bincount(number[found.kept]).tolist() == [1, 1, 1, 1]
    found = gram_obs(*moments(arrays), block=2, keep=4, until=0, balance=2)
    for start in range(0, 8, 2):  # rounds of one per set
        assert sorted((found.order[start : start + 2] // 4).tolist()) == [0, 1]
    assert found.at(6).tolist() == sorted(set(range(8)) - set(found.order[:2].tolist()))


def test_damaged_matrices_raise_the_ridge_and_say_so() -> None:
    gram, cross, weight = moments(data(4, 1, 2, 71))
    broken = torch.eye(4, dtype=torch.float64)
    broken[0, 0] = -0.01
    with pytest.warns(UserWarning, match="not positive definite; delta raised to"):
        found = gram_obs(broken, cross, weight, keep=2, ridge=1e-6)
    assert found.delta[0] > 0.01
    for worse in (-gram, torch.eye(4) - torch.ones(4, 4)):
        with pytest.raises(ValueError, match=r"gram: expected a positive semidefinite matrix, got one that a ridge"):
            gram_obs(worse, cross, weight, keep=2, ridge=0.1)


@pytest.mark.parametrize("n", [0, 1, 4, 5, 17, 32])
def test_inverse_by_halves(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram_problem, "LARGE", 4)
    monkeypatch.setattr(gram_problem, "PANEL", 3)
    matrix = torch.randn(2, n, n + 2, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    factor = torch.linalg.cholesky(matrix @ matrix.mT)
    expected = torch.cholesky_inverse(factor)
    inverse = gram_problem.invert_(factor)
    assert inverse.data_ptr() == factor.data_ptr()
    torch.testing.assert_close(inverse, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(inverse, inverse.mT)


@pytest.mark.parametrize("rows", [(), (2,)])
def test_solutions_are_those_of_cholesky_solve(rows: tuple[int, ...]) -> None:
    matrix = torch.randn(*rows, 70, 73, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    right = torch.randn(*rows, 9, 70, generator=torch.Generator().manual_seed(2), dtype=torch.float64).mT
    factor = torch.linalg.cholesky(matrix @ matrix.mT + 70 * torch.eye(70, dtype=torch.float64))  # on any BLAS
    before = factor.clone()
    torch.testing.assert_close(
        gram_problem.solved(factor, right), torch.cholesky_solve(right, factor), rtol=1e-12, atol=0
    )
    assert torch.equal(factor, before)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_finite_numbers_whose_sum_is_not(value: float) -> None:
    large = torch.full((4,), 1e308, dtype=torch.float64)
    assert gram_problem.all_finite(large)
    large[2] = value
    assert not gram_problem.all_finite(large)


def test_no_activations_at_all() -> None:
    weight = randn(2, 4)
    found = gram_obs(torch.zeros(4, 4), torch.zeros(2, 4), weight, keep=2)
    assert torch.equal(found.weight, weight[:, found.kept])
    assert set(found.kept.tolist()) == set(weight.square().sum(0).topk(2).indices.tolist())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"gram": torch.ones(4, 3)}, r"gram: expected \[n, n\] or \[groups, n, n\], got \(4, 3\)"),
        ({"gram": torch.full((4, 4), torch.nan)}, r"gram: expected finite numbers, got NaN or inf"),
        ({"cross": torch.ones(2, 3)}, r"cross: expected \[d, n\] with n = 4, got \(2, 3\)"),
        ({"cross": torch.ones(1, 2, 4)}, r"cross: expected \[d, n\] with n = 4, got \(1, 2, 4\)"),
        ({"weight": torch.ones(3, 4)}, r"weight: expected the shape of cross, \(2, 4\), got \(3, 4\)"),
        ({"block": 3}, r"block: expected a divisor of 4, the number of columns, got 3"),
        ({"ridge": -1.0}, r"ridge: expected a finite number >= 0, got -1.0"),
        ({"ridge": torch.inf}, r"ridge: expected a finite number >= 0, got inf"),
        ({"keep": 0}, r"keep: expected 1 to 4, the number of units, got 0"),
        ({"keep": 5}, r"keep: expected 1 to 4, the number of units, got 5"),
        ({"keep": 2.0}, r"keep: expected an integer, or a share in \(0, 1\), got 2.0"),
        ({"balance": 3}, r"balance: expected a divisor of 4, the number of units, got 3"),
        ({"balance": 2, "keep": 3}, r"keep: expected a multiple of 2, the number of sets kept alike, got 3"),
        ({"until": 3}, r"until: expected at most keep, 2, got 3"),
        ({"until": -1}, r"until: expected 0 to 4, the number of units, got -1"),
        ({"iterations": 0}, r"iterations: expected at least 1, got 0"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    arguments = {"gram": torch.eye(4), "cross": torch.ones(2, 4), "weight": torch.ones(2, 4), "keep": 2} | change
    with pytest.raises(ValueError, match=message):
        (gram_cosamp if "iterations" in change else gram_obs)(**arguments)


@pytest.mark.parametrize(
    "kept, message",
    [
        (torch.tensor([1, 0]), r"kept: expected ascending unit numbers \[keep\], got \(2,\), torch.int64"),
        (torch.tensor([0.0]), r"kept: expected ascending unit numbers \[keep\], got \(1,\), torch.float32"),
        (torch.tensor([[0]]), r"kept: expected ascending unit numbers \[keep\], got \(1, 1\), torch.int64"),
        (torch.tensor([3, 4]), r"kept: expected numbers in \[0, 4\), got 3 to 4"),
        (torch.tensor([-1, 2]), r"kept: expected numbers in \[0, 4\), got -1 to 2"),
    ],
)
def test_errors_of_refit(kept: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refit(torch.eye(4), torch.ones(2, 4), torch.ones(2, 4), kept)


def test_refit_of_uneven_groups() -> None:
    with pytest.raises(ValueError, match=r"kept: expected as many units in each of 2 groups, got \[2, 0\]"):
        refit(torch.eye(4).expand(2, 4, 4), torch.ones(2, 1, 4), torch.ones(2, 1, 4), torch.tensor([0, 1]))
