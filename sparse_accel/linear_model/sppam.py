"""Linear models on exact implicit steps: no tuning of the step size."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state

from ._shared import LinearClassifier, LinearModel, two_classes
from ._steps import Iterates, as_rows, order_of_rows, passes_over


class _SPPAMModel(BaseEstimator):
    """Passes of single-row implicit steps, with momentum and averaging; subclasses name the family."""

    _family: ClassVar[str]
    _iterates: Iterates

    def __init__(
        self,
        lr: float = 1.0,
        momentum: float = 0.0,
        max_iter: int = 20,
        averaging: bool = True,
        fit_intercept: bool = True,
        random_state: Any = None,
        warm_start: bool = False,
    ) -> None:
        self.lr = lr
        self.momentum = momentum
        self.max_iter = max_iter
        self.averaging = averaging
        self.fit_intercept = fit_intercept
        self.random_state = random_state
        self.warm_start = warm_start

    def _goes_on(self, partial: bool) -> bool:
        """Whether a fit starts where the one before it ended."""
        return (partial or self.warm_start) and hasattr(self, "_iterates")

    def _solve(self, X: Any, targets: list[np.ndarray], y: np.ndarray, weights: Any, *, partial: bool) -> np.ndarray:
        """Coefficients ``[predictors, d]``, or ``[predictors, d + 1]`` with the intercept last."""
        if self.max_iter < 1 or int(self.max_iter) != self.max_iter:
            raise ValueError(f"max_iter: expected a number of passes >= 1, got {self.max_iter!r}")
        rows = as_rows(X, self.fit_intercept)
        shape = (len(targets), rows.shape[1])
        if self._goes_on(partial):
            if self._iterates.x.shape != shape:
                raise ValueError(
                    f"expected {shape[0]} predictors of {shape[1]} coefficients as in the fit before, got "
                    f"{[*self._iterates.x.shape]}: fit anew, with warm_start=False"
                )
            now = self._iterates.copy()
        else:
            random = check_random_state(self.random_state)
            if self.random_state is None or random is self.random_state:  # the caller's: what is kept is our own
                random = check_random_state(random.randint(2**31 - 1))
            now = Iterates.zeros(*shape, X.dtype, random)
        if not partial:
            now.total[:], now.counted = 0, 0
        place = order_of_rows(X, y)
        passes = 1 if partial else int(self.max_iter)
        own = None if weights is None else weights[place]
        order = passes_over(place, own, passes, now.random, scale=not partial)
        start = 0 if now.counted else len(order) // 2
        now.run(rows, targets, order, start, (float(self.lr), float(self.momentum), self._family))
        self.n_iter_ = passes + (getattr(self, "n_iter_", 0) if partial and self._goes_on(partial) else 0)
        self._iterates = now  # only a fit that went through moves them
        return now.result(self.averaging)

    def _split(self, solution: np.ndarray) -> tuple[np.ndarray, Any]:
        return (solution[..., :-1], solution[..., -1]) if self.fit_intercept else (solution, 0.0)


class _SPPAMRegressor(RegressorMixin, LinearModel, _SPPAMModel):
    """One predictor."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit to rows and targets.

        Args:
            X: ``[n, d]``, dense or sparse.
            y: ``[n]``.
            sample_weight: ``[n]``, >= 0; a row of weight w counts as w rows.

        Raises:
            ValueError: data that do not fit.
        """
        return self._fit(X, y, sample_weight, partial=False)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """One pass over some rows, from where the last fit ended; arguments as for :meth:`fit`."""
        return self._fit(X, y, sample_weight, partial=True)

    def _fit(self, X: Any, y: Any, sample_weight: Any, *, partial: bool) -> Any:
        X, y, weights = self._check_fit(X, y, sample_weight, y_numeric=True, reset=not self._goes_on(partial))
        self._check_targets(y)
        solution = self._solve(X, [y], y, weights, partial=partial)
        self.coef_, self.intercept_ = self._split(solution[0])
        return self

    def _check_targets(self, y: np.ndarray) -> None:
        pass


class SPPAMRegressor(_SPPAMRegressor):
    """Linear regression by the stochastic proximal point method with momentum.

    The rows' order in the data does not matter.

    Args:
        lr: step size, > 0; any is stable. Small ones average out more noise.
        momentum: beta.
        max_iter: passes over the rows.
        averaging: take the mean of the iterates of the second half of all steps, not the last one (of
            :meth:`partial_fit`, from the second half of its first call on).
        fit_intercept: fit one.
        random_state: of the rows' order; None takes numpy's global state.
        warm_start: go on where the fit before ended, momentum and random numbers too.

    Attributes:
        ``coef_``: ``[d]``. ``intercept_``: number. ``n_iter_``: passes made. ``n_features_in_``: d.

    Example:
        >>> X, y = [[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0]
        >>> SPPAMRegressor(max_iter=200, random_state=0).fit(X, y).predict([[3.0]]).round(2)
        array([7.])
    """

    _family = "gaussian"

    def predict(self, X: Any) -> np.ndarray:
        """The mean ``[n]``."""
        return self._linear(X)


class SPPAMPoissonRegressor(_SPPAMRegressor):
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

    def _check_targets(self, y: np.ndarray) -> None:
        if (np.asarray(y) < 0).any():
            raise ValueError(f"y: expected counts >= 0, got {np.min(y)}")

    def predict(self, X: Any) -> np.ndarray:
        """The mean ``[n]``, > 0."""
        return np.exp(self._linear(X))


class SPPAMClassifier(LinearClassifier, _SPPAMModel):
    """Logistic regression by the stochastic proximal point method with momentum; one against the rest for more classes.

    Arguments as :class:`SPPAMRegressor`.

    Args:
        class_weight: factors of the rows' weights, by label (1 for others), or ``"balanced"``: the same sum for each
            class.

    Attributes:
        ``classes_``: labels ``[k]``. ``coef_``: ``[1, d]`` for two classes, else ``[k, d]``. ``intercept_``: ``[1]`` or
            ``[k]``.

    Example:
        >>> X, y = [[-1.0], [-0.5], [0.5], [1.0]], ["a", "a", "b", "b"]
        >>> SPPAMClassifier(random_state=0).fit(X, y).predict([[2.0]])
        array(['b'], dtype='<U1')
    """

    _family = "binomial"

    def __init__(
        self,
        lr: float = 1.0,
        momentum: float = 0.0,
        max_iter: int = 20,
        averaging: bool = True,
        fit_intercept: bool = True,
        random_state: Any = None,
        warm_start: bool = False,
        class_weight: Any = None,
    ) -> None:
        super().__init__(lr, momentum, max_iter, averaging, fit_intercept, random_state, warm_start)
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SPPAMClassifier:
        """Fit to rows and labels.

        Args:
            X: ``[n, d]``, dense or sparse.
            y: labels ``[n]``.
            sample_weight: ``[n]``, >= 0; a row of weight w counts as w rows.

        Raises:
            ValueError: data that do not fit.
        """
        X, y, weights = self._check_fit(X, y, sample_weight, reset=not self._goes_on(False))
        classes = two_classes(y)
        if not self._goes_on(False):
            self.classes_ = classes
        return self._fit(X, y, weights, partial=False)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> SPPAMClassifier:
        """One pass over some rows, from where the last fit ended.

        Args:
            X: ``[n, d]``, dense or sparse.
            y: labels ``[n]``.
            classes: all labels that will come, in the first call.
            sample_weight: ``[n]``, >= 0.

        Raises:
            ValueError: data that do not fit; no ``classes`` in the first call, or other ones later; a class weight
                that is ``"balanced"``, which takes all rows at once.
        """
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight: expected a dict or None for partial_fit, which does not see all rows, got 'balanced'"
            )
        first = not self._goes_on(True)
        if first and classes is None:
            raise ValueError("classes: expected all labels in the first call of partial_fit, got None")
        known = None if classes is None else two_classes(np.asarray(classes))
        if not first and known is not None and not np.array_equal(known, self.classes_):
            raise ValueError(f"classes: expected {self.classes_.tolist()} as before, got {known.tolist()}")
        X, y, weights = self._check_fit(X, y, sample_weight, reset=first)
        if known is not None:
            self.classes_ = known
        return self._fit(X, y, weights, partial=True)

    def _fit(self, X: Any, y: np.ndarray, weights: Any, *, partial: bool) -> SPPAMClassifier:
        targets, weights = self._targets(y), self._weighted(y, weights)
        if weights is not None and not weights.all():
            used = weights > 0
            X, y, weights, targets = X[used], y[used], weights[used], [own[used] for own in targets]
            if not partial:
                two_classes(y)
        codes = np.searchsorted(self.classes_, y)
        self.coef_, self.intercept_ = self._split(self._solve(X, targets, codes, weights, partial=partial))
        self.intercept_ = np.broadcast_to(self.intercept_, (len(self.coef_),)).copy()
        return self
