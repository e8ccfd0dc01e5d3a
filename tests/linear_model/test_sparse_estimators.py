"""Exactly k coefficients: the best ones, with weights, scales and intercepts; the path over k."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

import sparse_accel as sa

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
sparse = pytest.importorskip("scipy.sparse")
models = pytest.importorskip("sklearn.linear_model")
datasets = pytest.importorskip("sklearn.datasets")

Linear, Logistic = sa.linear_model.SparseLinearRegression, sa.linear_model.SparseLogisticRegression
sparse_path = sa.linear_model.sparse_path


def data(count: int = 120, d: int = 7) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    X = random.normal(size=(count, d)) @ random.normal(size=(d, d)) * 10.0 ** np.arange(-3, d - 3) + 5
    scaled = (X - X.mean(0)) / X.std(0)
    return X, scaled[:, 1] - 0.7 * scaled[:, 4] + 0.4 * scaled[:, 5] + 2 + 0.3 * random.normal(size=count)


def squared(X, y, weights, kept) -> tuple[float, np.ndarray]:
    """The weighted least-squares error on some features, and the solution with the intercept last."""
    root = np.sqrt(weights / weights.sum())
    A = np.c_[X[:, list(kept)] / X[:, list(kept)].std(0), np.ones(len(y))]
    solution = np.linalg.lstsq(root[:, None] * A, root * y, rcond=None)[0]
    solution[:-1] /= X[:, list(kept)].std(0)
    return float(np.square(root * (y - X[:, list(kept)] @ solution[:-1] - solution[-1])).sum()), solution


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_least_squares_on_the_best_features(k: int, weighted: bool) -> None:
    X, y = data()
    weights = np.random.default_rng(1).uniform(0, 2, len(y)) if weighted else np.ones(len(y))
    model = Linear(k=k).fit(X, y, weights if weighted else None)
    assert len(model.support_) == np.count_nonzero(model.coef_) == k
    assert list(model.support_) == sorted(model.support_)
    error, solution = squared(X, y, weights, model.support_)
    np.testing.assert_allclose(model.coef_[model.support_], solution[:-1], rtol=1e-7)
    assert model.intercept_ == pytest.approx(solution[-1], rel=1e-6)
    best = min(squared(X, y, weights, kept)[0] for kept in itertools.combinations(range(7), k))
    assert error <= 1.0001 * best  # on these data elimination finds the best of all subsets


def test_the_intercept_is_free_and_the_choice_has_no_units() -> None:
    X, y = data()
    model = Linear(k=3).fit(X, y)
    moved = Linear(k=3).fit(X * 7 - 100, 2 * y + 11)
    np.testing.assert_array_equal(moved.support_, model.support_)
    np.testing.assert_allclose(moved.predict(X * 7 - 100), 2 * model.predict(X) + 11, rtol=1e-6)
    plain = Linear(k=3, standardize=False).fit(X, y)
    np.testing.assert_array_equal(plain.support_, model.support_)
    np.testing.assert_allclose(plain.predict(X), model.predict(X), rtol=1e-6)
    without = Linear(k=7, fit_intercept=False).fit(X, y)
    assert without.intercept_ == 0.0
    expected = np.linalg.lstsq(X / X.std(0), y, rcond=None)[0] / X.std(0)
    np.testing.assert_allclose(without.coef_, expected, rtol=1e-5)
    ridge = Linear(k=7, ridge=0.3).fit(X, y)
    theirs = models.Ridge(alpha=0.3 * len(y)).fit((X - X.mean(0)) / X.std(0), y)
    np.testing.assert_allclose(ridge.coef_ * X.std(0), theirs.coef_, rtol=1e-6)


@pytest.mark.parametrize("method", ["iht", "niht", "htp", "topk_iobs", "iobs"])
def test_every_method_keeps_k(method: str) -> None:
    X, y = data()
    assert np.count_nonzero(Linear(k=3, method=method).fit(X, y).coef_) <= 3
    assert len(Linear(k=3, method=method).fit(X, y).support_) == 3
    model = Logistic(k=3, method=method).fit(X, y > 2)
    assert model.support_.shape == (1, 3)
    assert np.count_nonzero(model.coef_) <= 3


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_regression_on_all_features_is_scikit_learns(intercept: bool, weighted: bool) -> None:
    X, y = data(300)
    X = (X - X.mean(0)) / X.std(0)
    labels = y + np.random.default_rng(1).normal(size=300) > 2
    weights = np.random.default_rng(2).uniform(0.1, 2, 300) if weighted else np.ones(300)
    ours = Logistic(k=7, ridge=0.01, fit_intercept=intercept, standardize=False).fit(X, labels, weights)
    C = 1 / (0.01 * weights.sum())
    theirs = models.LogisticRegression(C=C, fit_intercept=intercept, tol=1e-10, max_iter=1000).fit(X, labels, weights)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=2e-5)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=2e-5)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-4)


def test_the_profiled_loss_and_its_derivatives() -> None:
    """Gradient and Hessian of the loss with the best intercept, against autograd through the envelope."""
    from sparse_accel.linear_model._logistic import ProfiledLogistic

    generator = torch.Generator().manual_seed(0)
    A = torch.randn(40, 4, generator=generator, dtype=torch.float64) + 1
    y = (torch.rand(40, generator=generator) < 0.3).double()
    weights = torch.rand(40, generator=generator, dtype=torch.float64) + 0.1
    problem = ProfiledLogistic(A, y, weights)
    theta = torch.randn(1, 4, generator=generator, dtype=torch.float64)
    b = problem.intercept(theta)
    residual = (weights * ((A @ theta[0] + b).sigmoid() - y)).sum()
    assert abs(float(residual)) < 1e-13
    step = 1e-5 * torch.eye(4, dtype=torch.float64)
    slopes = [float(problem.loss(theta + d) - problem.loss(theta - d)) / 2e-5 for d in step]
    np.testing.assert_allclose(problem.gradient(theta)[0], slopes, atol=1e-8)
    bends = torch.stack([(problem.gradient(theta + d) - problem.gradient(theta - d))[0] / 2e-5 for d in step])
    hessian = problem.hessian(theta)[0]
    np.testing.assert_allclose(hessian, bends, atol=1e-8)
    np.testing.assert_allclose(problem.diagonal(theta)[0], hessian.diagonal(), rtol=1e-10)
    direction = torch.randn(1, 4, generator=generator, dtype=torch.float64)
    np.testing.assert_allclose(problem.product(theta, direction)[0], hessian @ direction[0], rtol=1e-9)
    np.testing.assert_allclose(problem.sample_gradients(theta)[0].mean(0), problem.gradient(theta)[0], rtol=1e-9)
    assert float(torch.linalg.eigvalsh(hessian)[-1]) <= float(problem.smoothness())
    far = 300 * theta  # saturated: the bracket holds
    assert bool(torch.isfinite(problem.intercept(far)).all())
    assert abs(float((weights * ((A @ far[0] + problem.intercept(far)).sigmoid() - y)).sum())) < 1e-9


def test_logistic_choice_on_planted_features() -> None:
    random = np.random.default_rng(0)
    X = random.normal(size=(400, 30)) * 10.0 ** random.uniform(-2, 2, 30) + 3
    scaled = (X - 3) / X.std(0)
    y = 2 * scaled[:, 3] - 2 * scaled[:, 11] + 1.5 * scaled[:, 20] - 1 + random.logistic(size=400) > 0
    model = Logistic(k=3).fit(X, y)
    assert model.support_.tolist() == [[3, 11, 20]]
    counts = np.random.default_rng(3).integers(0, 3, 400)
    weighted, repeated = Logistic(k=3).fit(X, y, counts), Logistic(k=3).fit(X.repeat(counts, 0), y.repeat(counts))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-6)
    balanced = Logistic(k=3, class_weight="balanced").fit(X, y)
    share = np.where(y, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    np.testing.assert_allclose(balanced.coef_, Logistic(k=3).fit(X, y, share).coef_, rtol=1e-6)
    assert balanced.predict(X).mean() > model.predict(X).mean()


def test_several_classes_have_k_each() -> None:
    X, y = datasets.load_iris(return_X_y=True)
    model = Logistic(k=2, ridge=1e-2).fit(X, y)
    assert model.coef_.shape == (3, 4)
    assert (np.count_nonzero(model.coef_, axis=1) == 2).all()
    assert model.support_.shape == (3, 2)
    assert model.score(X, y) > 0.9


def test_sparse_rows_constant_columns_and_small_widths() -> None:
    X, y = data()
    X[:, 2] = 4.0
    for estimator, target in ((Linear(k=3), y), (Logistic(k=3), y > 2)):
        dense = estimator.fit(X, target).coef_.copy()
        np.testing.assert_allclose(estimator.fit(sparse.csr_matrix(X), target).coef_, dense, rtol=1e-9, atol=1e-12)
        assert not np.ravel(dense)[2]
    assert len(Linear().fit(X[:, :4], y).support_) == 4  # 10 by default, or all
    wide = np.c_[X, np.random.default_rng(0).normal(size=(len(y), 20))]
    assert np.count_nonzero(Linear().fit(wide, y).coef_) == 10


@pytest.mark.filterwarnings("error")
def test_features_that_repeat_each_other(caplog) -> None:
    """Of equal features one is chosen, without a warning, and the fit is that of the others."""
    X, y = data()
    doubled = np.c_[X, X[:, ::-1]]
    for k in (2, 3):
        model = Linear(k=k).fit(doubled, y)
        np.testing.assert_allclose(model.predict(doubled), Linear(k=k).fit(X, y).predict(X), rtol=1e-7)
    assert len(Linear(k=12).fit(doubled, y).support_) == 12
    few = np.random.default_rng(0).normal(size=(8, 20))
    assert Linear(k=8).fit(few, few[:, 0] - few[:, 5]).score(few, few[:, 0] - few[:, 5]) > 0.99
    assert not caplog.records


@pytest.mark.parametrize(
    "options, message",
    [
        ({"k": 0}, "k: expected a whole number from 1 to 7, the number of features, or None, got 0"),
        ({"k": 8}, "k: expected a whole number from 1 to 7"),
        ({"k": 1.5}, "k: expected a whole number"),
        ({"k": True}, "k: expected a whole number"),
        ({"method": "omp"}, "method: expected one of"),
        ({"ridge": -1.0}, "ridge: expected a finite number >= 0"),
        ({"max_iter": 0}, "max_iter: expected a whole number >= 1"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    X, y = data()
    for estimator, target in ((Linear(**options), y), (Logistic(**options), y > 2)):
        with pytest.raises(ValueError, match=message):
            estimator.fit(X, target)
        assert not hasattr(estimator, "coef_")


def test_the_path_is_the_fits_and_the_scores_those_of_the_folds(tmp_path) -> None:
    X, y = data()
    weights = np.random.default_rng(1).uniform(0.5, 2, len(y))
    folds = [(np.arange(40, 120), np.arange(40)), (np.arange(80), np.arange(80, 120))]
    estimator = Linear()
    path = sparse_path(
        estimator, X, y, [4, 1, 2, 4], cv=folds, scoring="neg_mean_absolute_error", sample_weight=weights
    )
    assert path.ks == [1, 2, 4]
    assert path.scores.shape == (3, 2)
    assert estimator.k is None
    for place, k in enumerate(path.ks):
        np.testing.assert_array_equal(path.coefs[place], Linear(k=k).fit(X, y, weights).coef_)
        for number, (train, test) in enumerate(folds):
            fit = Linear(k=k).fit(X[train], y[train], weights[train])
            error = np.average(np.abs(y[test] - fit.predict(X[test])), weights=weights[test])
            assert path.scores[place, number] == pytest.approx(-error)
    best = int(np.argmax(path.mean))
    assert path.best_k == path.ks[best]
    assert path.one_se_k == next(
        k for k, s in zip(path.ks, path.mean, strict=True) if s >= path.mean[best] - path.error[best]
    )
    np.testing.assert_allclose(path.error, path.scores.std(1, ddof=1) / np.sqrt(2))
    assert path.estimator(2) is path.estimators[1]
    assert path.estimator().k == path.best_k
    with pytest.raises(ValueError, match=r"k: expected one of \[1, 2, 4\], got 3"):
        path.estimator(3)
    plain = json.loads(json.dumps(path.to_plain()))
    assert plain["best_k"] == path.best_k
    assert "+1" in str(path)
    pytest.importorskip("matplotlib")
    assert path.plot(tmp_path / "new" / "path.png").read_bytes().startswith(b"\x89PNG")


def test_the_path_of_a_classifier_finds_the_planted_number(tmp_path) -> None:
    random = np.random.default_rng(0)
    X = random.normal(size=(300, 12))
    y = np.where(3 * X[:, 2] - 3 * X[:, 7] + random.logistic(size=300) > 0, "on", "off")
    path = sparse_path(Logistic(), X, y, range(1, 4), cv=2, scoring="neg_log_loss")
    assert path.one_se_k == 2
    assert path.coefs.shape == (3, 12)
    three = sparse_path(Logistic(ridge=0.1), X, np.digitize(X[:, 2], [-0.5, 0.5]), [2, 3], cv=2)
    assert three.coefs.shape == (2, 3, 12)
    pytest.importorskip("matplotlib")
    assert three.plot(tmp_path / "three.png").exists()


def test_frames_lists_and_bad_paths() -> None:
    X, y = data()
    lists = sparse_path(Linear(), X.tolist(), y.tolist(), [2], cv=2)
    np.testing.assert_allclose(lists.coefs[0], Linear(k=2).fit(X, y).coef_)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcdefg"))
    named = sparse_path(Linear(), frame, pandas.Series(y), [2], cv=2)
    assert named.names == list("abcdefg")
    assert list(named.estimator(2).feature_names_in_) == list("abcdefg")


@pytest.mark.parametrize("ks", [[], [0], [8], [1.5]])
def test_bad_numbers_on_a_path_are_refused(ks) -> None:
    X, y = data()
    with pytest.raises(ValueError, match="ks: expected whole numbers from 1 to 7"):
        sparse_path(Linear(), X, y, ks)


def test_other_estimators_and_names_are_refused() -> None:
    X, y = data()
    with pytest.raises(TypeError, match="estimator: expected one with a parameter k, got Ridge"):
        sparse_path(models.Ridge(), X, y, [1])
    with pytest.raises(ValueError, match="names: expected one for each of the 7 features, got 2"):
        sparse_path(Linear(), X, y, [1], names=["a", "b"])


def test_what_has_not_settled_is_said() -> None:
    exceptions = pytest.importorskip("sklearn.exceptions")
    X, y = datasets.load_breast_cancer(return_X_y=True)
    with pytest.warns(exceptions.ConvergenceWarning, match="the choice had not settled after max_iter=1 iterations"):
        Logistic(k=3, max_iter=1).fit(X, y)


@pytest.mark.parametrize("k", [1, 4])
def test_the_logistic_loss_is_at_its_minimum_on_the_choice(k: int) -> None:
    X, y = datasets.load_breast_cancer(return_X_y=True)
    model = Logistic(k=k).fit(X, y)
    kept = model.support_[0]
    Z = (X - X.mean(0)) / X.std(0)
    theirs = models.LogisticRegression(C=1 / (1e-3 * len(y)), tol=1e-12, max_iter=5000).fit(Z[:, kept], y)
    np.testing.assert_allclose((model.coef_ * X.std(0))[0, kept], theirs.coef_[0], rtol=1e-4)
