"""What the estimators share: checks, weights, predictors, classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import expit
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

_FLOATS = (np.float64, np.float32)


class LinearModel:
    """Data checked, and ``X @ coef_.T + intercept_``; for estimators."""

    coef_: np.ndarray
    intercept_: Any
    n_features_in_: int

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.sparse = True
        return tags

    def _check_fit(self, X: Any, y: Any, sample_weight: Any, **options: Any) -> tuple[Any, np.ndarray, Any]:
        """Rows (CSR where sparse), targets and float64 weights or None, without the rows of weight zero.

        Raises:
            ValueError: data that do not fit; negative weights, or none above zero.
        """
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=_FLOATS, **options)
        if sparse.issparse(X):
            X = X.copy()
            X.sum_duplicates()
        if sample_weight is None:
            return X, y, None
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64)
        if (weights < 0).any():
            raise ValueError(f"sample_weight: expected numbers >= 0, got {weights.min():g}: Negative values in data")
        if not weights.any():
            raise ValueError("sample_weight: expected a weight above zero, got none")
        used = weights > 0
        return (X, y, weights) if used.all() else (X[used], y[used], weights[used])

    def _linear(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=_FLOATS, reset=False)
        return np.asarray(X @ self.coef_.T + self.intercept_)


class LinearClassifier(ClassifierMixin, LinearModel):
    """Two classes by the sign of one predictor, more by the largest of one against the rest each."""

    classes_: np.ndarray
    class_weight: Any

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

    def _targets(self, y: np.ndarray) -> list[np.ndarray]:
        """0 and 1 for each predictor.

        Raises:
            ValueError: labels that are none of :attr:`classes_`.
        """
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(f"y: expected the classes {self.classes_.tolist()}, got {unknown.tolist()} besides")
        codes = np.searchsorted(self.classes_, y)
        ones = [1] if len(self.classes_) == 2 else range(len(self.classes_))
        return [(codes == one).astype(np.float64) for one in ones]

    def _weighted(self, y: np.ndarray, weights: Any) -> Any:
        """The weights times those of the classes; ``"balanced"`` gives each class the same sum."""
        if self.class_weight is None:
            return weights
        own = np.ones(len(y)) if weights is None else weights
        codes = np.searchsorted(self.classes_, y)
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            sums = np.bincount(codes, own, minlength=len(self.classes_))
            present = np.count_nonzero(sums)
            factors = own.sum() / (present * np.where(sums > 0, sums, 1))
        else:  # a dict, or what scikit-learn refuses in its words
            factors = compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_)
        if (np.asarray(factors) < 0).any():
            raise ValueError(f"class_weight: expected weights >= 0, got {self.class_weight!r}")
        return own * factors[codes]


def two_classes(y: np.ndarray) -> np.ndarray:
    """The labels in order.

    Raises:
        ValueError: less than two, or no labels of classes.
    """
    check_classification_targets(y)
    classes = np.unique(y)
    if len(classes) < 2:
        raise ValueError(f"y: expected two classes or more, got one class, {classes[0]!r}")
    return classes
