"""Sparse recovery: what the methods promise, against independent solutions."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recovery_cases import best_subset, loss_of, on_support, planted

import sparse_accel as sa
from sparse_accel.sparse_recovery import METHODS, LeastSquares, Logistic, Stopping, solve
from sparse_accel.sparse_recovery import curvature as curvatures
from sparse_accel.sparse_recovery.curvature import Dense, Diagonal, LowRank
from sparse_accel.sparse_recovery.elimination import eliminate, eliminate_low_rank, largest

DTYPES = [torch.float64, torch.float32]


def test_exported() -> None:
    assert sa.sparse_recovery.solve is solve
    assert set(METHODS) == {"iht", "niht", "htp", "topk_iobs", "iobs"}


def inverse_of(matrix: torch.Tensor) -> torch.Tensor:
    """By Cholesky: MKL's LU of a batch hangs after torch.set_num_threads (torch 2.13), which other tests call."""
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix))


# The choice of the support


def explicit_elimination(H: torch.Tensor, v: torch.Tensor, k: int) -> tuple[list[int], torch.Tensor]:
    """One coordinate after another, with a fresh inverse and a fresh least squares solution each time."""
    kept, target, v = list(range(len(v))), H @ v, v.clone()
    while len(kept) > k:
        inverse = torch.linalg.inv(H[kept][:, kept])
        damage = v[kept].square() / inverse.diagonal()
        worst = len(kept) - 1 - int(damage.flip(0).argmin())
        del kept[worst]
        # The minimizer of the model on what is left: H_KK u = (H v)_K with the original v.
        v = torch.zeros_like(v)
        v[kept] = torch.linalg.solve(H[kept][:, kept], target[kept])
    return kept, v


@pytest.mark.parametrize("size, k", [(7, 3), (40, 11), (150, 20), (150, 149), (5, 5), (5, 1)])
def test_elimination_is_exact(size: int, k: int) -> None:
    generator = torch.Generator().manual_seed(size + k)
    root = torch.randn(3, size, size + 5, generator=generator, dtype=torch.float64)
    H, v = root @ root.mT, torch.randn(3, size, generator=generator, dtype=torch.float64)
    found = eliminate(inverse_of(H), v, k)
    curvature = Dense(H)
    curvature.factor(torch.zeros(3, dtype=torch.float64))
    assert torch.equal(curvature.choose(v, k), found)
    for i in range(3):
        kept, values = explicit_elimination(H[i], v[i], k)
        assert found[i].tolist() == kept
        torch.testing.assert_close(curvature.refit(v, found)[i], values[kept], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("size, count, k", [(60, 5, 7), (200, 20, 50), (90, 30, 0)])
def test_low_rank_elimination_is_that_of_the_matrix(size: int, count: int, k: int) -> None:
    generator = torch.Generator().manual_seed(size)
    factors = torch.randn(2, count, size, generator=generator, dtype=torch.float64)
    v = torch.randn(2, size, generator=generator, dtype=torch.float64)
    H = torch.eye(size, dtype=torch.float64) + factors.mT @ factors
    assert torch.equal(eliminate_low_rank(factors, v, k), eliminate(inverse_of(H), v, k))


def test_low_rank_curvature_is_the_damped_fisher_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(2, 6, 30, generator=generator, dtype=torch.float64)
    gradients[:, :, 4] = 0  # no sample says anything of it
    v = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    F = gradients.mT @ gradients / 6
    diagonal = F.diagonal(dim1=1, dim2=2)
    diagonal = torch.where(diagonal > 0, diagonal, diagonal.mean(1, keepdim=True))
    H = F + 0.3 * torch.diag_embed(diagonal) + 0.1 * torch.eye(30, dtype=torch.float64)
    curvature = LowRank(gradients, ridge=0.1)
    curvature.factor(torch.full((2,), 0.3, dtype=torch.float64))
    torch.testing.assert_close(curvature.solve(v), (inverse_of(H) @ v[..., None])[..., 0])
    index = curvature.choose(v, 9)
    assert torch.equal(index, eliminate(inverse_of(H), v, 9))
    for i in range(2):
        places = index[i]
        expected = torch.linalg.solve(H[i][places][:, places], (H[i] @ v[i])[places])
        torch.testing.assert_close(curvature.refit(v, index)[i], expected)


def test_obs_update_is_the_minimizer_of_the_model() -> None:
    A, b, _ = planted(rows=60, size=20, nonzeros=5, noise=0.1)
    H, g = A.T @ A / 60, -A.T @ b / 60  # at 0
    result = solve(LeastSquares(A, b), 8)
    inverse, v = torch.linalg.inv(H), -torch.linalg.inv(H) @ g
    Q = (~result.support).nonzero().flatten()
    update = v - inverse[:, Q] @ torch.linalg.solve(inverse[Q][:, Q], v[Q])
    torch.testing.assert_close(result.theta, update)
    torch.testing.assert_close(result.theta, on_support(A, b, result.support))


@pytest.mark.parametrize("batch", [1, 3])
def test_ties_go_to_the_lowest_index(batch: int) -> None:
    scores = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 0.0]).expand(batch, -1)
    assert largest(scores, 3).tolist() == [[0, 1, 3]] * batch
    for method in METHODS:
        b = torch.tensor([1.0, 2.0, -1.0, 2.0, 1.0, 0.0], dtype=torch.float64).expand(batch, -1)
        result = solve(LeastSquares(torch.eye(6, dtype=torch.float64), b), 3, method)
        assert result.support.nonzero()[:, 1].tolist() == [0, 1, 3] * batch


def test_diagonal_curvature_weighs_magnitudes() -> None:
    curvature = Diagonal(torch.tensor([[100.0, 1.0, 4.0]], dtype=torch.float64))
    curvature.factor(torch.zeros(1, dtype=torch.float64))
    assert curvature.choose(torch.tensor([[0.5, 3.0, 2.0]], dtype=torch.float64), 2).tolist() == [[0, 2]]


# Least squares


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [16, 64])
@pytest.mark.parametrize("method", ["iobs", "topk_iobs"])
def test_noiseless_recovery_in_one_step(method: str, k: int, dtype: torch.dtype) -> None:
    A, b, theta = planted(batch=20, dtype=dtype)
    result = solve(LeastSquares(A, b), k, method, iterations=1)
    assert result.iterations == 1
    assert not (theta != 0)[~result.support].any()  # planted places are all there
    assert (result.support.sum(1) == k).all()
    unit = torch.finfo(dtype).eps
    assert ((result.theta - theta).norm(dim=1) <= 100 * unit * theta.norm(dim=1)).all()


def test_the_second_iterate_equals_the_first() -> None:
    A, b, _ = planted(noise=0.1)
    one, two = (solve(LeastSquares(A, b), 40, iterations=n, stop=Stopping(step=-1)) for n in (1, 2))
    torch.testing.assert_close(one.theta, two.theta, rtol=1e-10, atol=1e-12)
    assert solve(LeastSquares(A, b), 40).reasons == ("step",)


def test_published_scaling_takes_a_fraction_of_the_step() -> None:
    """A gradient of the mean square with a Hessian of the sum is 2/n of a Newton step."""
    A, b, theta = planted()
    slow = solve(LeastSquares(A, b), 64, step=2 / 256, iterations=100)
    error = (slow.theta - theta).norm() / theta.norm()
    assert not slow.converged
    assert float(error) == pytest.approx((1 - 2 / 256) ** 100, rel=0.05)


@pytest.mark.parametrize("noise", [0.001, 0.01, 0.1, 0.3])
def test_noisy_loss_is_within_5_percent_of_the_true_supports(noise: float) -> None:
    A, b, theta = planted(batch=50, noise=noise, seed=1)
    result = solve(LeastSquares(A, b), 16)
    ideal = on_support(A, b, theta != 0)
    ratio = loss_of(A, b, result.theta) / loss_of(A, b, ideal)
    assert float(ratio.max()) <= 1.05
    # The parameters are those of the true support wherever that is found.
    found = (result.support == (theta != 0)).all(1)
    torch.testing.assert_close(result.theta[found], ideal[found])
    # Where it is not, another support explains the data better: no method that looks at the loss could know.
    assert (ratio[~found] <= 1.0 + 5e-3).all()


@pytest.mark.parametrize("noise", [0.003, 0.03, 0.1])
def test_noisy_parameters_where_nonzeros_stand_out_of_the_noise(noise: float) -> None:
    """Nonzeros of at least 8 standard deviations: support and parameters are those of the oracle in every run."""
    A, b, theta = planted(batch=50, noise=noise, seed=2, least=8 * noise)
    result = solve(LeastSquares(A, b), 16)
    assert torch.equal(result.support, theta != 0)
    ideal = on_support(A, b, theta != 0)
    assert ((result.theta - theta).norm(dim=1) <= 1.05 * (ideal - theta).norm(dim=1)).all()


@pytest.mark.parametrize("rows", [165, 256])
def test_top_k_without_refit_costs_the_noise_of_the_dense_solution(rows: int) -> None:
    """The error of prediction is (n - k) / (n - d) times that of the refit one: 4 at n = 165, 2 at n = 256."""
    A, b, theta = planted(batch=100, rows=rows, noise=0.01, seed=3, least=0.2)
    exact = (A @ theta[..., None])[..., 0]
    costs = [
        float(loss_of(A, exact, solve(LeastSquares(A, b), 16, "topk_iobs", refit=refit).theta).mean())
        for refit in (False, True)
    ]
    assert costs[0] / costs[1] == pytest.approx((rows - 16) / (rows - 128), rel=0.15)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_brute_force_on_tiny_problems(method: str, seed: int) -> None:
    A, b, _ = planted(rows=30, size=9, nonzeros=3, noise=0.02, seed=seed, least=0.3)
    best, least = best_subset(A, b, 3)
    result = solve(LeastSquares(A, b), 3, method, refit=True, iterations=300)
    torch.testing.assert_close(result.theta, best)
    assert float(result.loss) == pytest.approx(least)


def test_iobs_is_as_good_as_matching_pursuit() -> None:
    omp = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed").orthogonal_mp
    ratios = []
    for seed in range(20):
        A, b, _ = planted(rows=100, size=50, nonzeros=10, noise=0.05, seed=seed)
        theirs = float(loss_of(A, b, torch.from_numpy(omp(A.numpy(), b.numpy(), n_nonzero_coefs=10))))
        ratios.append(float(solve(LeastSquares(A, b), 10).loss) / theirs)
    assert max(ratios) <= 1.05
    assert sum(ratios) / len(ratios) <= 1.005


@pytest.mark.parametrize("kind", ["correlated", "scaled", "wide", "repeated"])
@pytest.mark.parametrize("method", ["iht", "niht", "htp"])
def test_thresholding_is_monotone_without_any_isometry(method: str, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    if kind == "correlated":
        A = A @ torch.randn(30, 30, generator=generator, dtype=torch.float64) + 5
    elif kind == "scaled":
        A = A * torch.logspace(-2, 2, 30, dtype=torch.float64)
    elif kind == "wide":
        A = A[:12]
    else:
        A[:, 15:] = A[:, :15]
    b = torch.randn(len(A), generator=generator, dtype=torch.float64)
    loss = solve(LeastSquares(A, b), 6, method, iterations=200, stop=Stopping(step=-1)).history.loss
    assert ((loss[1:] - loss[:-1]) <= 1e-12 * loss[0]).all()


def test_iht_takes_the_step_of_the_formula() -> None:
    A, b, _ = planted(rows=20, size=12, nonzeros=3)
    top = torch.linalg.matrix_norm(A, 2) ** 2 / 20
    start = torch.linspace(-1, 1, 12, dtype=torch.float64)
    moved = start - A.T @ (A @ start - b) / 20 / top
    expected = torch.where(moved.abs() >= moved.abs().sort(descending=True).values[3], moved, 0.0)
    torch.testing.assert_close(solve(LeastSquares(A, b), 4, "iht", initial=start, iterations=1).theta, expected)
    given_step = solve(LeastSquares(A, b), 4, "iht", initial=start, iterations=1, step=float(1 / top))
    torch.testing.assert_close(given_step.theta, expected)


def test_niht_takes_the_exact_step_along_the_support() -> None:
    A, b, theta = planted(rows=60, size=20, nonzeros=4, noise=0.01, least=1.0)
    start = solve(LeastSquares(A, b), 4).theta * 1.1  # the right support: it stays, and so does the full step
    gradient = A.T @ (A @ start - b) / 60
    restricted = gradient * (start != 0)
    step = restricted.square().sum() / ((A @ restricted).square().sum() / 60)
    result = solve(LeastSquares(A, b), 4, "niht", initial=start, iterations=1)
    torch.testing.assert_close(result.theta, (start - step * gradient) * (theta != 0))


def test_htp_is_a_minimizer_on_its_support() -> None:
    A, b, _ = planted(noise=0.05)
    result = solve(LeastSquares(A, b), 20, "htp")
    assert result.converged
    torch.testing.assert_close(result.theta, on_support(A, b, result.support))


@pytest.mark.parametrize("method", ["iobs", "topk_iobs"])
@pytest.mark.parametrize("curvature", ["hessian", "diagonal", "fisher"])
def test_units_of_the_unknowns_do_not_matter(method: str, curvature: str) -> None:
    A, b, theta = planted(rows=100, size=30, nonzeros=5, noise=0.01, least=1.0)
    units = torch.logspace(0, -9, 30, dtype=torch.float64)[
        torch.randperm(30, generator=torch.Generator().manual_seed(1))
    ]
    results = [solve(LeastSquares(A * unit, b), 5, method, curvature=curvature, iterations=20, refit=True)
               for unit in (torch.ones(30, dtype=torch.float64), units)]  # fmt: skip
    if method == "iobs":  # the k largest depend on the units
        torch.testing.assert_close(results[1].theta * units, results[0].theta)
        if curvature != "fisher":
            assert torch.equal(results[1].support, theta != 0)
    if curvature == "hessian":
        assert float(results[1].damping) == 0


def test_coordinates_without_curvature_stay_put() -> None:
    A, b, _ = planted(rows=60, size=20, nonzeros=4, noise=0.01)
    A[:, 3] = 0
    for curvature in ("hessian", "diagonal", "fisher"):
        result = solve(LeastSquares(A, b), 4, curvature=curvature)
        assert not result.support[3]
        assert curvature == "fisher" or float(result.damping) == 0


def test_ridge_is_that_of_extra_rows() -> None:
    A, b, _ = planted(rows=60, size=20, nonzeros=4, noise=0.05)
    more = torch.cat([A, (60 * 0.03) ** 0.5 * torch.eye(20, dtype=torch.float64)])
    result = solve(LeastSquares(A, b), 7, ridge=0.03)
    torch.testing.assert_close(result.theta, on_support(more, torch.cat([b, b.new_zeros(20)]), result.support))
    expected = loss_of(A, b, result.theta) + 0.015 * result.theta.square().sum()
    torch.testing.assert_close(result.loss, expected)


def test_more_unknowns_than_rows_damping_makes_iterating_pay(caplog: pytest.LogCaptureFixture) -> None:
    A, b, theta = planted(batch=20, rows=64, nonzeros=8, seed=3)
    with caplog.at_level(logging.WARNING, "sparse_accel"):
        result = solve(LeastSquares(A, b), 8)
    torch.testing.assert_close(result.theta, theta)
    assert (result.damping == 1e-3).all()
    assert (result.history.damping[1] == 1e-3).all()
    assert "singular or indefinite curvature, damping raised from 0 to 0.001" in caplog.text


def test_damping_does_not_move_the_solution() -> None:
    A, b, _ = planted(noise=0.05, nonzeros=10, least=0.5)
    plain, damped = solve(LeastSquares(A, b), 10), solve(LeastSquares(A, b), 10, damping=0.1)
    torch.testing.assert_close(damped.theta, plain.theta)
    assert damped.iterations > plain.iterations
    assert (damped.damping == 0.1).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_problems_one_by_one(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    A, b, _ = planted(batch=3, rows=40, size=24, nonzeros=5, noise=0.1)
    together = solve(LeastSquares(A, b), 6, method, iterations=40)
    for i in range(3):
        alone = solve(LeastSquares(A[i], b[i]), 6, method, iterations=40)
        torch.testing.assert_close(together.theta[i], alone.theta, rtol=1e-7, atol=1e-9)
        assert together.reasons[i] == alone.reasons[0]
    monkeypatch.setattr(curvatures, "_ENTRIES", 24**2)  # one problem at a time
    shared = solve(LeastSquares(A[0], b), 6, method, iterations=40)
    repeated = solve(LeastSquares(A[:1].expand(3, -1, -1), b), 6, method, iterations=40)
    torch.testing.assert_close(shared.theta, repeated.theta, rtol=1e-7, atol=1e-9)
    grid = solve(LeastSquares(A.view(1, 3, 40, 24), b.view(1, 3, 40)), 6, method, iterations=40)
    assert grid.theta.shape == (1, 3, 24)
    assert grid.loss.shape == (1, 3)
    torch.testing.assert_close(grid.theta[0], together.theta)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 12),
    size=st.integers(1, 10),
    method=st.sampled_from(METHODS),
    part=st.floats(0, 1),
)
def test_any_problem_ends_with_k_places_and_no_more_loss(seed: int, rows: int, size: int, method: str,
                                                         part: float) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    A = torch.randint(-2, 3, (rows, size), generator=generator).double()  # often singular, often with dead columns
    b = torch.randint(-3, 4, (rows,), generator=generator).double()
    k = round(part * size)
    result = solve(LeastSquares(A, b), k, method, iterations=30)
    assert int(result.support.sum()) == k
    assert not result.theta[~result.support].any()
    assert float(result.loss) <= float(b.square().mean()) / 2 + 1e-9
    assert float(result.loss) == pytest.approx(float(loss_of(A, b, result.theta)), abs=1e-12)


# Logistic regression


def logistic_data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(400, 20, generator=generator, dtype=torch.float64)
    theta = torch.zeros(20, dtype=torch.float64)
    theta[[2, 7, 11]] = torch.tensor([1.5, -2.0, 1.0], dtype=torch.float64)
    return A, (torch.rand(400, generator=generator, dtype=torch.float64) < (A @ theta).sigmoid()).double()


@pytest.mark.parametrize("method", METHODS)
def test_logistic_finds_what_scikit_learn_finds_on_the_support(method: str) -> None:
    models = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    A, y = logistic_data()
    result = solve(Logistic(A, y), 3, method, iterations=500, ridge=0.01, refit=True)
    assert result.support.nonzero().flatten().tolist() == [2, 7, 11]
    model = models.LogisticRegression(C=1 / (400 * 0.01), fit_intercept=False, tol=1e-10, max_iter=1000)
    model.fit(A[:, [2, 7, 11]].numpy(), y.numpy())
    torch.testing.assert_close(result.theta[[2, 7, 11]], torch.from_numpy(model.coef_[0]), rtol=1e-4, atol=1e-5)


def test_iobs_converges_quadratically_and_iht_linearly() -> None:
    A, y = logistic_data()
    newton = solve(Logistic(A, y), 3)
    assert newton.iterations <= 8
    slow = solve(Logistic(A, y), 3, "iht", iterations=2000)
    assert slow.iterations > 5 * newton.iterations
    torch.testing.assert_close(newton.theta, slow.theta, rtol=1e-6, atol=1e-8)
    assert ((newton.history.loss[1:] - newton.history.loss[:-1]) <= 1e-12).all()
    errors = [float((solve(Logistic(A, y), 3, iterations=n).theta - newton.theta).norm()) for n in range(2, 6)]
    for before, after in itertools.pairwise(errors):
        assert after <= before**2 + 1e-12


@pytest.mark.parametrize("curvature", ["diagonal", "fisher"])
@pytest.mark.parametrize("samples", [None, 15, 100])
def test_other_curvatures_reach_the_same_solution(curvature: str, samples: int | None) -> None:
    A, y = logistic_data()
    exact = solve(Logistic(A, y), 3)
    result = solve(Logistic(A, y), 3, curvature=curvature, curvature_samples=samples, iterations=300)
    assert torch.equal(result.support, exact.support)
    assert float(result.loss) <= float(exact.loss) + 1e-4
    assert ((result.history.loss[1:] - result.history.loss[:-1]) <= 1e-12).all()


def test_separable_data_do_not_break_it() -> None:
    A = torch.tensor([[1.0, 0.1], [2.0, -0.2], [-1.0, 0.3], [-0.5, -0.1]], dtype=torch.float64)
    y = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    for method in METHODS:
        result = solve(Logistic(A, y), 1, method)
        assert torch.isfinite(result.theta).all()
        assert float(result.loss) < 0.3
