"""scikit-learn estimators on exact implicit steps: linear models that need no tuning of the step size.

Needs scikit-learn (``pip install sparse-accel[sklearn]``); imported on first use of ``sparse_accel.linear_model``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

try:
    from scipy import sparse
    from scipy.special import expit
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "sparse_accel.linear_model needs scikit-learn 1.6 or newer: pip install 'sparse-accel[sklearn]'"
    ) from error

from sparse_accel.ops import glm_epoch
from sparse_accel.optim._exact import with_column

__all__ = ["SPPAMClassifier", "SPPAMPoissonRegressor", "SPPAMRegressor"]


class _SPPAMModel(BaseEstimator):
    """Passes of single-row implicit steps, with momentum and averaging; subclasses name the family."""

    _family: ClassVar[str]

    def __init__(
        self,
        lr: float = 1.0,
        momentum: float = 0.0,
        max_iter: int = 20,
        averaging: bool = True,
        fit_intercept: bool = True,
        random_state: Any = None,
    ) -> None:
        self.lr = lr
        self.momentum = momentum
        self.max_iter = max_iter
        self.averaging = averaging
        self.fit_intercept = fit_intercept
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _solve(self, X: Any, y: np.ndarray) -> np.ndarray:
        """Coefficients ``[d]``, or ``[d + 1]`` with the intercept last."""
        if self.max_iter < 1 or int(self.max_iter) != self.max_iter:
            raise ValueError(f"max_iter: expected a number of passes >= 1, got {self.max_iter!r}")
        random = check_random_state(self.random_state)
        rows = _tensor(X)
        if self.fit_intercept:
            rows = with_column(rows, 1.0)
        x = torch.zeros(rows.shape[1], dtype=rows.dtype, device="cpu")
        x_prev, average = x.clone(), torch.zeros(rows.shape[1], dtype=torch.float64, device="cpu")
        count = X.shape[0]
        order = torch.from_numpy(np.concatenate([random.permutation(count) for _ in range(self.max_iter)]))
        targets = torch.from_numpy(np.ascontiguousarray(y, dtype=np.float64))
        glm_epoch(x, x_prev, rows, targets, order.long(), float(self.lr), float(self.momentum), self._family,
                  average=average, average_start=len(order) // 2)  # fmt: skip
        self.n_iter_ = int(self.max_iter)
        return (average if self.averaging else x.double()).numpy()

    def _split(self, solution: np.ndarray) -> tuple[np.ndarray, Any]:
        return (solution[..., :-1], solution[..., -1]) if self.fit_intercept else (solution, 0.0)

    def _check_fit(self, X: Any, y: Any, **options: Any) -> tuple[Any, np.ndarray]:
        return validate_data(self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32], **options)

    def _linear(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)
        return np.asarray(X @ self.coef_.T + self.intercept_)


def _tensor(X: Any) -> Tensor:
    if not sparse.issparse(X):
        return torch.from_numpy(np.array(X, order="C"))
    X = X.tocsr().copy()
    X.sum_duplicates()
    indices = (torch.from_numpy(X.indptr.astype(np.int64)), torch.from_numpy(X.indices.astype(np.int64)))
    return torch.sparse_csr_tensor(*indices, torch.from_numpy(X.data), X.shape, check_invariants=False, device="cpu")


class SPPAMRegressor(RegressorMixin, _SPPAMModel):
    """Linear regression by the stochastic proximal point method with momentum.

    Args:
        lr: step size, > 0; any is stable. Small ones average out more noise.
        momentum: beta.
        max_iter: passes over the rows.
        averaging: take the mean of the iterates of the second half of all steps, not the last one.
        fit_intercept: fit one.
        random_state: of the rows' order; None takes numpy's global state.

    Attributes:
        coef_: ``[d]``. intercept_: number. n_iter_: passes made. n_features_in_: d.

    Example:
        >>> X, y = [[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0]
        >>> SPPAMRegressor(max_iter=200, random_state=0).fit(X, y).predict([[3.0]]).round(2)
        array([7.])
    """

    _family = "gaussian"

    def fit(self, X: Any, y: Any) -> SPPAMRegressor:
        """Fit to rows ``[n, d]`` (dense or sparse) and targets ``[n]``; ValueError for data that do not fit."""
        X, y = self._check_fit(X, y, y_numeric=True)
        self.coef_, self.intercept_ = self._split(self._solve(X, y))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The mean ``[n]``."""
        return self._linear(X)


class SPPAMPoissonRegressor(RegressorMixin, _SPPAMModel):
    """Poisson regression with the log link by the stochastic proximal point method with momentum.

    Arguments and attributes as :class:`SPPAMRegressor`; targets are counts, or any numbers >= 0.

    Example:
        >>> X, y = [[0.0], [1.0], [2.0]], [1.0, 2.0, 4.0]
        >>> SPPAMPoissonRegressor(max_iter=200, random_state=0).fit(X, y).predict([[3.0]]).round(1)
        array([8.])
    """

    _family = "poisson"

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        return tags

    def fit(self, X: Any, y: Any) -> SPPAMPoissonRegressor:
        """Fit to rows ``[n, d]`` (dense or sparse) and targets ``[n]`` >= 0; ValueError for data that do not fit."""
        X, y = self._check_fit(X, y, y_numeric=True)
        if (np.asarray(y) < 0).any():
            raise ValueError(f"y: expected counts >= 0, got {np.min(y)}")
        self.coef_, self.intercept_ = self._split(self._solve(X, y))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The mean ``[n]``, > 0."""
        return np.exp(self._linear(X))


class SPPAMClassifier(ClassifierMixin, _SPPAMModel):
    """Logistic regression by the stochastic proximal point method with momentum; one against the rest for more classes.

    Arguments as :class:`SPPAMRegressor`.

    Attributes:
        classes_: labels ``[k]``. coef_: ``[1, d]`` for two classes, else ``[k, d]``. intercept_: ``[1]`` or ``[k]``.

    Example:
        >>> X, y = [[-1.0], [-0.5], [0.5], [1.0]], ["a", "a", "b", "b"]
        >>> SPPAMClassifier(random_state=0).fit(X, y).predict([[2.0]])
        array(['b'], dtype='<U1')
    """

    _family = "binomial"

    def fit(self, X: Any, y: Any) -> SPPAMClassifier:
        """Fit to rows ``[n, d]`` (dense or sparse) and labels ``[n]``; ValueError for data that do not fit."""
        X, y = self._check_fit(X, y)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y: expected two classes or more, got one class, {self.classes_[0]!r}")
        ones = [1] if len(self.classes_) == 2 else range(len(self.classes_))
        self.coef_, self.intercept_ = self._split(np.stack([self._solve(X, codes == k) for k in ones]))
        self.intercept_ = np.broadcast_to(self.intercept_, (len(self.coef_),)).copy()
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """The predictors: ``[n]`` of the second of two classes, else ``[n, k]``."""
        values = self._linear(X)
        return values[:, 0] if values.shape[1] == 1 else values

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities ``[n, k]``; of more than two classes normalized to sum to 1."""
        values = expit(self._linear(X))
        if values.shape[1] == 1:
            return np.concatenate([1 - values, values], 1)
        total = values.sum(1, keepdims=True)
        return np.where(total > 0, values / np.where(total > 0, total, 1), 1 / values.shape[1])

    def predict(self, X: Any) -> np.ndarray:
        """Labels ``[n]``."""
        values = self._linear(X)
        best = (values[:, 0] > 0).astype(int) if values.shape[1] == 1 else values.argmax(1)
        return self.classes_[best]
