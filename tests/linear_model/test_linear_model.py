"""The scikit-learn estimators: scikit-learn's own checks, and what they find."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import sparse_accel as sa

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
sparse = pytest.importorskip("scipy.sparse")
models = pytest.importorskip("sklearn.linear_model")
check_estimator = pytest.importorskip("sklearn.utils.estimator_checks").check_estimator

ESTIMATORS = [
    sa.linear_model.SPPAMRegressor(),
    sa.linear_model.SPPAMRegressor(momentum=0.5, lr=0.1, fit_intercept=False),
    sa.linear_model.SPPAMClassifier(),
    sa.linear_model.SPPAMPoissonRegressor(),
    sa.linear_model.SparseLinearRegression(),
    sa.linear_model.SparseLogisticRegression(ridge=0.1),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_check_estimator(estimator: Any) -> None:
    """Weights as repeated rows, partial_fit, sparse input, cloning, pickling, and the rest: no check is left out."""
    check_estimator(estimator)


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    X = random.normal(size=(600, 4)) * (random.random((600, 4)) > 0.4)
    return X, X @ np.array([1.0, -0.5, 0.25, 0.0]) + 0.3


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_they_find_what_scikit_learn_finds(momentum: float) -> None:
    X, mean = data()
    random = np.random.default_rng(1)
    cases = [
        (sa.linear_model.SPPAMRegressor, models.LinearRegression(), mean + 0.1 * random.normal(size=600)),
        (
            sa.linear_model.SPPAMClassifier,
            models.LogisticRegression(C=1e6),
            random.random(600) < 1 / (1 + np.exp(-mean)),
        ),
        (sa.linear_model.SPPAMPoissonRegressor, models.PoissonRegressor(alpha=0), random.poisson(np.exp(mean))),
    ]
    for ours, theirs, y in cases:
        theirs.fit(X, y)
        found = [ours(lr=0.05, momentum=momentum, max_iter=60, random_state=0).fit(rows, y) for rows in
                 (X, sparse.csr_matrix(X))]  # fmt: skip
        for model in found:
            np.testing.assert_allclose(model.coef_, theirs.coef_, atol=0.08)
            np.testing.assert_allclose(model.intercept_, theirs.intercept_, atol=0.08)
        np.testing.assert_allclose(found[0].coef_, found[1].coef_, atol=1e-9)
        assert found[0].score(X, y) > theirs.score(X, y) - 0.02


def test_several_classes_and_probabilities() -> None:
    random = np.random.default_rng(0)
    centers = np.array([[3.0, 0.0], [-3.0, 2.0], [0.0, -4.0]])
    y = random.integers(3, size=300)
    X = centers[y] + random.normal(size=(300, 2))
    labels = np.array(["x", "y", "z"])[y]
    model = sa.linear_model.SPPAMClassifier(random_state=0).fit(X, labels)
    assert model.score(X, labels) > 0.95
    assert model.coef_.shape == (3, 2)
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1)


def test_bad_targets_are_refused() -> None:
    X, mean = data()
    with pytest.raises(ValueError, match="y: expected counts >= 0, got -"):
        sa.linear_model.SPPAMPoissonRegressor().fit(X, mean - 3)
    with pytest.raises(ValueError, match="got one class"):
        sa.linear_model.SPPAMClassifier().fit(X, np.ones(600))
    with pytest.raises(ValueError, match="lr: expected a finite number > 0"):
        sa.linear_model.SPPAMRegressor(lr=0.0).fit(X, mean)


def test_scikit_learn_is_imported_on_first_use_only() -> None:
    code = "import sys, sparse_accel as sa; print('sklearn' in sys.modules); sa.linear_model.SPPAMRegressor()"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
