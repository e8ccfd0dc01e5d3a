"""Linear and logistic regression with exactly k coefficients, by sparse recovery."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning

from sparse_accel.sparse_recovery import LeastSquares, Stopping, solve

from ._logistic import ProfiledLogistic
from ._shared import LinearClassifier, LinearModel, two_classes

FEW = 10
STILL = 5  # iterations without a change of the choice, after which its minimizer is looked for
# Least squares: features that repeat each other leave the choice open; a trace of ridge settles it. The coefficients
# are those without it.
CHOICE_RIDGE = 1e-9


class _SparseModel(BaseEstimator):
    """Data centred and scaled, and the solution in the units of the data."""

    n_features_in_: int

    def __init__(
        self,
        k: int | None = None,
        method: str = "iobs",
        ridge: float = 0.0,
        fit_intercept: bool = True,
        standardize: bool = True,
        max_iter: int = 100,
    ) -> None:
        self.k = k
        self.method = method
        self.ridge = ridge
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.max_iter = max_iter

    def _count(self) -> int:
        """How many coefficients are asked for.

        Raises:
            ValueError: less than one or more than there are.
        """
        d = self.n_features_in_
        if self.k is None:
            return min(FEW, d)
        if isinstance(self.k, bool) or int(self.k) != self.k or not 1 <= self.k <= d:
            raise ValueError(
                f"k: expected a whole number from 1 to {d}, the number of features, or None, got {self.k!r}"
            )
        return int(self.k)

    def _scaled(self, X: Any, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows in float64, dense, centred where there is an intercept and divided by their spread; means, spreads."""
        X = np.array(X.toarray() if sparse.issparse(X) else X, dtype=np.float64)
        share = weights / weights.sum()
        mean = share @ X if self.fit_intercept else np.zeros(X.shape[1])
        X -= mean
        spread = np.ones(X.shape[1])
        if self.standardize:
            spread = np.sqrt(share @ np.square(X))
            spread[spread <= 1e-12 * np.abs(mean)] = 0.0  # constant, up to rounding
            X[:, spread == 0] = 0.0
            spread[spread == 0] = 1.0
            X /= spread
        return X, mean, spread

    def _options(self) -> dict[str, Any]:
        """What :func:`~sparse_accel.sparse_recovery.solve` is asked for.

        Raises:
            ValueError: ``max_iter`` is no number of iterations.
        """
        if int(self.max_iter) != self.max_iter or self.max_iter < 1:
            raise ValueError(f"max_iter: expected a whole number >= 1, got {self.max_iter!r}")
        return {"k": self._count(), "method": self.method, "ridge": self.ridge, "progress": False}

    def _late(self) -> None:
        warnings.warn(
            f"{type(self).__name__}: the choice had not settled after max_iter={self.max_iter} iterations",
            ConvergenceWarning,
            stacklevel=3,
        )


class SparseLinearRegression(RegressorMixin, LinearModel, _SparseModel):
    """Least squares with exactly k coefficients.

    Minimizes ``mean (y - b - x.coef)^2 / 2`` over k coefficients and the intercept, which does not count. The
    choice is :func:`sparse_accel.sparse_recovery.solve`'s: by default the optimal brain surgeon, which removes one
    coefficient after the other by what each costs after the others have made up for it.

    Args:
        k: coefficients, 1 to d. None: 10, or all where there are fewer.
        method: ``"iobs"``, ``"topk_iobs"``, ``"htp"``, ``"niht"`` or ``"iht"``.
        ridge: adds ``ridge / 2 |coef|^2``, in standardized units if so.
        fit_intercept: fit one.
        standardize: choose in units of each feature's standard deviation. The coefficients are those of the features as
            they are. I-OBS without ridge chooses the same either way.
        max_iter: iterations at most, of ``"htp"``, ``"niht"`` and ``"iht"``.

    Attributes:
        ``coef_``: ``[d]``, zero outside the support. ``intercept_``: number. ``support_``: the k features, ascending.
            ``n_iter_``. ``n_features_in_``: d.

    Source: see :mod:`sparse_accel.sparse_recovery`.

    Example:
        >>> random = np.random.default_rng(0)
        >>> X = random.normal(size=(50, 8))
        >>> model = SparseLinearRegression(k=2).fit(X, 3 * X[:, 1] - 2 * X[:, 6] + 1)
        >>> model.support_, model.coef_.round(6)[model.support_], round(model.intercept_, 6)
        (array([1, 6]), array([ 3., -2.]), 1.0)
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SparseLinearRegression:
        """Fit to rows and targets.

        Args:
            X: ``[n, d]``; sparse ones are made dense.
            y: ``[n]``.
            sample_weight: ``[n]``, >= 0; a row of weight w counts as w rows.

        Raises:
            ValueError: data or options that do not fit.
        """
        X, y, weights = self._check_fit(X, y, sample_weight, y_numeric=True)
        weights = np.ones(len(y)) if weights is None else weights
        rows, mean, spread = self._scaled(X, weights)
        y = np.asarray(y, dtype=np.float64)
        level = float(weights @ y / weights.sum()) if self.fit_intercept else 0.0
        root = np.sqrt(weights / weights.mean())
        A, b = (torch.from_numpy(np.ascontiguousarray(part)) for part in (rows * root[:, None], (y - level) * root))
        options = self._options()
        if isinstance(self.ridge, (int, float)) and 0 <= self.ridge < CHOICE_RIDGE:
            options["ridge"] = CHOICE_RIDGE
        # A whole Newton step from zero makes the choice: a second one finds nothing to change.
        steps = 1 if self.method in ("iobs", "topk_iobs") else int(self.max_iter)
        found = solve(LeastSquares(A, b), **options, iterations=steps)
        kept = found.support.numpy().nonzero()[0]
        self.coef_ = np.zeros(X.shape[1])
        self.coef_[kept] = _least_squares(A.numpy()[:, kept], b.numpy(), float(self.ridge)) / spread[kept]
        self.intercept_ = level - float(mean @ self.coef_)
        self.support_ = kept
        self.n_iter_ = max(1, found.iterations)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The mean ``[n]``."""
        return self._linear(X)


def _least_squares(A: np.ndarray, b: np.ndarray, ridge: float) -> np.ndarray:
    """The minimizer of ``|A x - b|^2 / (2 n) + ridge / 2 |x|^2``, the shortest of several."""
    if ridge:
        n, k = A.shape
        A, b = np.r_[A, np.sqrt(n * ridge) * np.eye(k)], np.r_[b, np.zeros(k)]
    found: np.ndarray = np.linalg.lstsq(A, b, rcond=None)[0]
    return found


class SparseLogisticRegression(LinearClassifier, _SparseModel):
    """Logistic regression with exactly k coefficients; one against the rest for more classes, k for each.

    Minimizes ``mean log(1 + e^v) - y v``, ``v = b + x.coef``, over k coefficients and the intercept, which does not
    count: for any coefficients it is the best one.

    Args:
        k, method, fit_intercept, standardize: as for :class:`SparseLinearRegression`.
        max_iter: iterations at most; a ``ConvergenceWarning`` says when the choice had not settled by then.
        ridge: adds ``ridge / 2 |coef|^2``, in standardized units if so. On classes that k features separate there is no
            minimum without it.
        class_weight: factors of the rows' weights, by label (1 for others), or ``"balanced"``: the same sum for each
            class.

    Attributes:
        ``classes_``: labels ``[c]``. ``coef_``: ``[1, d]`` for two classes, else ``[c, d]``. ``intercept_``: ``[1]`` or
            ``[c]``. ``support_``: the features in use, ``[1, k]`` or ``[c, k]``. ``n_iter_``. ``n_features_in_``: d.

    Source: see :mod:`sparse_accel.sparse_recovery`.

    Example:
        >>> random = np.random.default_rng(0)
        >>> X = random.normal(size=(200, 8))
        >>> model = SparseLogisticRegression(k=2).fit(X, X[:, 1] - X[:, 6] + random.normal(size=200) > 0)
        >>> model.support_
        array([[1, 6]])
    """

    def __init__(
        self,
        k: int | None = None,
        method: str = "iobs",
        ridge: float = 1e-3,
        fit_intercept: bool = True,
        standardize: bool = True,
        max_iter: int = 100,
        class_weight: Any = None,
    ) -> None:
        super().__init__(k, method, ridge, fit_intercept, standardize, max_iter)
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SparseLogisticRegression:
        """Fit to rows and labels.

        Args:
            X: ``[n, d]``; sparse ones are made dense.
            y: labels ``[n]``.
            sample_weight: ``[n]``, >= 0; a row of weight w counts as w rows.

        Raises:
            ValueError: data or options that do not fit.
        """
        X, y, weights = self._check_fit(X, y, sample_weight)
        self.classes_ = two_classes(y)
        weights = self._weighted(y, weights)
        weights = np.ones(len(y)) if weights is None else weights
        used = weights > 0
        X, y, weights = X[used], y[used], weights[used]
        two_classes(y)
        rows, mean, spread = self._scaled(X, weights)
        A, own = torch.from_numpy(rows), torch.from_numpy(weights)
        coefs, intercepts, supports, iterations = [], [], [], [1]
        for target in self._targets(y):
            problem = ProfiledLogistic(A, torch.from_numpy(target), own, self.fit_intercept)
            theta, support, count = self._choose(problem)
            coef = theta.numpy() / spread
            coefs.append(coef)
            intercepts.append(float(problem.intercept(theta[None])) - float(mean @ coef))
            supports.append(support.numpy().nonzero()[0])
            iterations.append(count)
        self.coef_, self.intercept_ = np.stack(coefs), np.array(intercepts)
        self.support_, self.n_iter_ = np.stack(supports), max(iterations)
        return self

    def _choose(self, problem: ProfiledLogistic) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Choices and minimizers on them by turns, until a choice stays: theta, support, number of iterations."""
        options, theta, before, used = self._options(), None, None, 0
        while used < self.max_iter:
            left = int(self.max_iter) - used
            found = solve(problem, **options, initial=theta, iterations=left, stop=Stopping(support=STILL))
            used += found.iterations
            index = found.support.nonzero().flatten()
            on_it = problem.restricted(index)  # as many as are asked for: Newton's method
            best = solve(
                on_it,
                len(index),
                ridge=self.ridge,
                initial=found.theta[index],
                iterations=int(self.max_iter),
                progress=False,
            )
            theta = torch.zeros_like(found.theta).index_copy(0, index, best.theta)
            settled = len(index) == problem.size or (before is not None and torch.equal(before, found.support))
            before = found.support
            if settled:
                break
        else:
            self._late()
        assert theta is not None
        assert before is not None
        return theta, before, used
