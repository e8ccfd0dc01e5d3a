"""Weights, partial fits and warm starts of the SPPAM estimators: what must be equal is."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import sparse_accel as sa

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
sparse = pytest.importorskip("scipy.sparse")

Regressor, Poisson, Classifier = (
    sa.linear_model.SPPAMRegressor, sa.linear_model.SPPAMPoissonRegressor, sa.linear_model.SPPAMClassifier,
)  # fmt: skip
KINDS = {"linear": Regressor, "poisson": Poisson, "two classes": Classifier, "three classes": Classifier}


def data(kind: str, count: int = 60, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    X = (random.normal(size=(count, 5)) * (random.random((count, 5)) > 0.5)).astype(dtype)
    mean = X @ np.array([1.0, -0.5, 0.25, 0.0, 0.5]) + 0.3
    y = {
        "linear": mean + 0.1 * random.normal(size=count),
        "poisson": random.poisson(np.exp(mean)).astype(float),
        "two classes": np.where(mean + 0.3 * random.normal(size=count) > 0, "yes", "no"),
        "three classes": np.digitize(mean + 0.1 * random.normal(size=count), [0.0, 0.7]),
    }[kind]
    return X, y


def numbers(model: Any) -> np.ndarray:
    return np.concatenate([np.ravel(model.coef_), np.ravel(model.intercept_)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_sparse", [False, True])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.4, "averaging": False, "fit_intercept": False, "lr": 0.3}])
def test_whole_weights_are_repeated_rows(kind: str, as_sparse: bool, options: dict) -> None:
    X, y = data(kind)
    weights = np.random.default_rng(1).integers(0, 4, len(y))
    shuffled = np.random.default_rng(2).permutation(int(weights.sum()))
    repeated = X.repeat(weights, 0)[shuffled], y.repeat(weights)[shuffled]
    model = KINDS[kind](random_state=3, max_iter=4, **options)
    first = copy.copy(model).fit(sparse.csr_matrix(X) if as_sparse else X, y, weights)
    second = copy.copy(model).fit(sparse.csr_matrix(repeated[0]) if as_sparse else repeated[0], repeated[1])
    np.testing.assert_allclose(numbers(first), numbers(second), rtol=1e-12, atol=1e-14)
    assert np.abs(numbers(first) - numbers(copy.copy(model).fit(X, y))).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_one_and_of_zero(kind: str) -> None:
    X, y = data(kind)
    model = KINDS[kind](random_state=0, max_iter=3)
    plain = numbers(copy.copy(model).fit(X, y))
    np.testing.assert_array_equal(numbers(copy.copy(model).fit(X, y, np.ones(len(y)))), plain)
    used = np.arange(len(y)) % 3 > 0
    without = numbers(copy.copy(model).fit(X[used], y[used]))
    np.testing.assert_array_equal(numbers(copy.copy(model).fit(X, y, used.astype(float))), without)


def test_the_scale_of_weights_is_nothing_and_broken_ones_are_met_on_average() -> None:
    from sparse_accel.linear_model._steps import passes_over

    X, y = data("linear")
    weights = np.random.default_rng(1).uniform(0.2, 2.5, len(y))
    fits = [Regressor(random_state=0, max_iter=5).fit(X, y, scale * weights) for scale in (1e-6, 1e-3, 0.1)]
    for fit in fits[1:]:
        np.testing.assert_allclose(numbers(fit), numbers(fits[0]), rtol=1e-9)
    rows = np.arange(len(weights))
    random = np.random.RandomState(0)
    counts = np.bincount(passes_over(rows, weights, 50, random, scale=False), minlength=len(rows))
    assert np.abs(counts - 50 * weights).max() <= 1
    large = passes_over(rows, 1e6 * np.ones(len(rows)), 2, random)
    assert len(large) == 2 * 16 * len(rows)


def test_weighted_least_squares_is_found() -> None:
    X, y = data("linear", 400)
    weights = np.random.default_rng(1).uniform(0, 5, len(y))
    y = y + np.where(weights > 2.5, 1.0, -1.0)
    model = Regressor(lr=0.01, max_iter=150, random_state=0).fit(X, y, weights)
    root = np.sqrt(weights)[:, None]
    best = np.linalg.lstsq(root * np.c_[X, np.ones(len(y))], root[:, 0] * y, rcond=None)[0]
    np.testing.assert_allclose(numbers(model), best, atol=0.05)
    plain = Regressor(lr=0.01, max_iter=150, random_state=0).fit(X, y)
    assert abs(plain.intercept_ - best[-1]) > 0.2


@pytest.mark.parametrize("kind", ["two classes", "three classes"])
def test_class_weights_are_sample_weights(kind: str) -> None:
    X, y = data(kind)
    classes, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    factors = np.array([3.0, 1.0, 2.0])[: len(classes)]
    model = Classifier(random_state=0, max_iter=3)
    by_sample = numbers(copy.copy(model).fit(X, y, factors[codes]))
    by_class = Classifier(random_state=0, max_iter=3, class_weight=dict(zip(classes, factors, strict=True)))
    np.testing.assert_array_equal(numbers(by_class.fit(X, y)), by_sample)
    balanced = Classifier(random_state=0, max_iter=3, class_weight="balanced")
    share = (len(y) / (len(classes) * counts))[codes]
    np.testing.assert_allclose(numbers(balanced.fit(X, y)), numbers(copy.copy(model).fit(X, y, share)), rtol=1e-9)
    both = numbers(by_class.fit(X, y, 1.0 + np.arange(len(y)) % 2))
    np.testing.assert_array_equal(
        both, numbers(copy.copy(model).fit(X, y, factors[codes] * (1 + np.arange(len(y)) % 2)))
    )


def test_balanced_classes_are_predicted_alike() -> None:
    random = np.random.default_rng(0)
    y = (np.arange(600) % 10 == 0).astype(int)
    X = random.normal(size=(600, 2)) + 0.8 * y[:, None]
    shares = [
        Classifier(random_state=0, lr=0.1, class_weight=weight).fit(X, y).predict(X).mean()
        for weight in (None, "balanced")
    ]
    assert shares[0] < 0.1
    assert shares[1] > 0.2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_sparse", [False, True])
def test_partial_fits_are_the_passes_of_a_fit(kind: str, as_sparse: bool) -> None:
    X, y = data(kind)
    X = sparse.csr_matrix(X) if as_sparse else X
    labels = {"classes": np.unique(y)} if "classes" in kind else {}
    options = {"random_state": 5, "momentum": 0.3, "lr": 0.2}
    one = KINDS[kind](**options, max_iter=1).fit(X, y)
    part = KINDS[kind](**options).partial_fit(X, y, **labels)
    np.testing.assert_array_equal(numbers(part), numbers(one))  # the mean of the second half of the steps, too
    assert part.n_iter_ == 1
    three = KINDS[kind](**options, max_iter=3, averaging=False).fit(X, y)
    parts = KINDS[kind](**options, averaging=False)
    for _ in range(3):
        parts.partial_fit(X, y, **labels)
    np.testing.assert_allclose(numbers(parts), numbers(three), rtol=1e-12)
    assert parts.n_iter_ == 3
    for _ in range(2):
        part.partial_fit(X, y, **labels)
    assert part._iterates.counted == len(y) * 3 - len(y) // 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_warm_start_goes_on(kind: str) -> None:
    X, y = data(kind)
    options = {"random_state": 5, "momentum": 0.3, "lr": 0.2, "averaging": False}
    whole = KINDS[kind](**options, max_iter=5).fit(X, y)
    warm = KINDS[kind](**options, max_iter=2, warm_start=True).fit(X, y)
    warm = pickle.loads(pickle.dumps(warm))
    warm.set_params(max_iter=3).fit(X, y)
    np.testing.assert_allclose(numbers(warm), numbers(whole), rtol=1e-12)
    cold = KINDS[kind](**options, max_iter=3).fit(X, y)
    np.testing.assert_array_equal(numbers(warm.set_params(warm_start=False).fit(X, y)), numbers(cold))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_sparse_rows_give_what_dense_ones_give(kind: str, dtype: Any) -> None:
    X, y = data(kind, dtype=dtype)
    weights = np.random.default_rng(1).uniform(0.5, 2, len(y))
    tolerance = 1e-9 if dtype is np.float64 else 1e-3
    dense = KINDS[kind](random_state=0, max_iter=3).fit(X, y, weights)
    for form in (sparse.csr_matrix, sparse.csc_matrix, sparse.coo_array):
        other = KINDS[kind](random_state=0, max_iter=3).fit(form(X), y, weights)
        np.testing.assert_allclose(numbers(other), numbers(dense), rtol=tolerance, atol=tolerance)
        if "classes" in kind:
            np.testing.assert_array_equal(other.predict(form(X)), other.predict(X))
        else:
            np.testing.assert_allclose(other.predict(form(X)), other.predict(X), rtol=tolerance)


def test_sums_of_duplicate_entries_and_callers_arrays() -> None:
    X, y = data("linear")
    doubled = sparse.coo_matrix(
        (np.r_[X.ravel(), X.ravel()], (np.tile(np.arange(60).repeat(5), 2), np.tile(np.arange(5), 120)))
    )
    kept = doubled.tocsr(copy=True)
    raw = sparse.csr_matrix((np.repeat(X.ravel(), 2), np.repeat(np.tile(np.arange(5), 60), 2), np.arange(61) * 10))
    fits = [Regressor(random_state=0).fit(rows, y) for rows in (2 * X, kept, raw)]
    assert raw.nnz == 600  # the caller's matrix stays as it is
    for fit in fits[1:]:
        np.testing.assert_allclose(numbers(fit), numbers(fits[0]), rtol=1e-9)


def test_without_a_seed_numpys_state_goes_on() -> None:
    X, y = data("linear")
    np.random.seed(0)  # noqa: NPY002
    first = Regressor(max_iter=1).fit(X, y)
    second = Regressor(max_iter=1).fit(X, y)
    assert np.abs(numbers(first) - numbers(second)).max() > 0
    np.random.seed(0)  # noqa: NPY002
    np.testing.assert_array_equal(numbers(Regressor(max_iter=1).fit(X, y)), numbers(first))


def test_a_failed_fit_changes_nothing() -> None:
    X, y = data("linear")
    model = Regressor(random_state=0).partial_fit(X, y)
    before = numbers(model), copy.deepcopy(model._iterates)
    with pytest.raises(ValueError, match="lr: expected a finite number > 0"):
        model.set_params(lr=-1.0).partial_fit(X, y)
    np.testing.assert_array_equal(numbers(model), before[0])
    np.testing.assert_array_equal(model._iterates.x, before[1].x)
    again = pickle.loads(pickle.dumps(model)).set_params(lr=1.0).partial_fit(X, y)
    np.testing.assert_array_equal(numbers(model.set_params(lr=1.0).partial_fit(X, y)), numbers(again))


def test_bad_calls_are_refused() -> None:
    X, y = data("two classes")
    cases = [
        (lambda: Classifier().partial_fit(X, y), "classes: expected all labels in the first call"),
        (lambda: Classifier().partial_fit(X, y, ["no"]), "y: expected two classes or more, got one class"),
        (lambda: Classifier().partial_fit(X, y, ["a", "no"]), r"y: expected the classes \['a', 'no'\], got \['yes'\]"),
        (
            lambda: Classifier().partial_fit(X, y, ["no", "yes"]).partial_fit(X, y, ["no", "perhaps"]),
            r"classes: expected \['no', 'yes'\] as before",
        ),
        (lambda: Classifier(class_weight="balanced").partial_fit(X, y, ["no", "yes"]), "class_weight: expected a dict"),
        (lambda: Classifier(class_weight={"no": -1.0}).fit(X, y), "class_weight: expected weights >= 0"),
        (lambda: Classifier(class_weight={"no": 0.0}).fit(X, y), "y: expected two classes or more, got one class"),
        (lambda: Classifier().fit(X, y, -np.ones(60)), "sample_weight: expected numbers >= 0, got -1"),
        (lambda: Classifier().fit(X, y, np.zeros(60)), "[Ss]ample.weight"),
        (lambda: Classifier(max_iter=0).fit(X, y), "max_iter: expected a number of passes >= 1"),
        (
            lambda: Classifier(warm_start=True).fit(X, y).set_params(fit_intercept=False).fit(X, y),
            "expected 1 predictors of 5 coefficients as in the fit before",
        ),
        (lambda: Classifier(warm_start=True).fit(X, y).fit(X[:, :3], y), "X has 3 features"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
