"""A sparse estimator over its number of coefficients: the path, and cross-validation along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.metrics import get_scorer
from sklearn.model_selection import check_cv
from sklearn.utils import indexable
from sklearn.utils.validation import _check_sample_weight, _num_features

from sparse_accel.progress import Show, check_progress, meter
from sparse_accel.report import Column, Contents, Fact, Lines, Report, Table, written

MOST = 30


@dataclass(frozen=True)
class SparsePath(Report):
    """What :func:`sparse_path` found; a table when printed.

    Attributes:
        ks: numbers of coefficients, ascending.
        coefs: of fits to all rows, ``[len(ks), d]``; for more than two classes ``[len(ks), classes, d]``.
        scores: on rows held out, ``[len(ks), folds]``; larger is better.
        best_k: with the best mean score; of equal ones the smallest.
        one_se_k: the smallest whose mean score is within one standard error of the best.
        estimators: the fits to all rows, in the order of ``ks``.
        names: of the features.
        scales: of the features, by which coefficients are multiplied in plots: their standard deviations.
    """

    ks: list[int]
    coefs: np.ndarray
    scores: np.ndarray
    best_k: int
    one_se_k: int
    estimators: list[Any] = field(repr=False)
    names: list[str] = field(repr=False)
    scales: np.ndarray = field(repr=False)

    @property
    def mean(self) -> np.ndarray:
        """Mean scores ``[len(ks)]``."""
        return self.scores.mean(1)

    @property
    def error(self) -> np.ndarray:
        """Standard errors of the mean scores ``[len(ks)]``."""
        return _standard_error(self.scores)

    def estimator(self, k: int | None = None) -> Any:
        """The fit with k coefficients, by default the best k.

        Raises:
            ValueError: k is not on the path.
        """
        k = self.best_k if k is None else k
        if k not in self.ks:
            raise ValueError(f"k: expected one of {self.ks}, got {k!r}")
        return self.estimators[self.ks.index(k)]

    def to_plain(self) -> dict[str, Any]:
        """Everything but the estimators as JSON-able data."""
        return {
            "ks": list(self.ks),
            "coefs": self.coefs.tolist(),
            "scores": self.scores.tolist(),
            "best_k": self.best_k,
            "one_se_k": self.one_se_k,
            "names": list(self.names),
        }

    def contents(self) -> Contents:
        """See :class:`~sparse_accel.Report`."""
        marks = {self.one_se_k: "one standard error", self.best_k: "best"}
        rows: list[list[Any]] = []
        before: set[str] = set()
        for number, k in enumerate(self.ks):
            used = {name for name, coef in zip(self.names, _largest(self.coefs[number]), strict=True) if coef}
            changes = [f"+{name}" for name in sorted(used - before)] + [f"-{name}" for name in sorted(before - used)]
            few = " ".join(changes[:4]) + (" …" if len(changes) > 4 else "")
            rows.append([k, float(self.mean[number]), float(self.error[number]), marks.get(k, ""), few])
            before = used
        columns = [
            Column("k", "k"),
            Column("score", "score"),
            Column("error", "±", written(".2g")),
            Column("mark", "", left=True),
            Column("features", "features", left=True),
        ]
        facts = [
            Fact("best k", str(self.best_k), f"score {float(self.mean[self.ks.index(self.best_k)]):.4g}"),
            Fact("within one standard error", str(self.one_se_k), joined=True),
        ]
        scores = [(float(k), float(mean)) for k, mean in zip(self.ks, self.mean, strict=True)]
        chart = Lines("Score on rows held out", "k", {"mean score": scores}, marks=[float(self.best_k)])
        return Contents("Coefficients, one by one", facts, [Table(columns, rows)], [chart])

    def plot(self, path: str | Path, *, title: str | None = None) -> Path:
        """Draw the coefficients over k (in units of the features' standard deviations), and the scores, into a PNG.

        Of more than two classes, the coefficient that is largest in magnitude is drawn.

        Args:
            path: the file to write.
            title: of the picture; none by default.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
            from matplotlib.ticker import MaxNLocator
        except ImportError as error:
            raise ImportError("plots need matplotlib: pip install matplotlib") from error
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        if title:
            figure.suptitle(title)
        curves = np.stack([_largest(coef) for coef in self.coefs * self.scales])
        strongest = set(np.argsort(-np.abs(curves[self.ks.index(self.best_k)]))[:8].tolist())
        for feature, curve in enumerate(curves.T):
            if not curve.any():
                continue
            label = self.names[feature] if feature in strongest and curve[self.ks.index(self.best_k)] else None
            style = {"linewidth": 2} if label else {"linewidth": 1, "color": "0.8", "zorder": 1}
            left.plot(self.ks, curve, label=label, drawstyle="default", marker="o", markersize=3, **style)
        left.axhline(0, color="0.6", linewidth=1)
        left.set(xlabel="k", title="Coefficient × standard deviation of the feature")
        if left.get_legend_handles_labels()[1]:
            left.legend(fontsize=8, frameon=False)
        right.errorbar(self.ks, self.mean, yerr=self.error, marker="o", markersize=4, capsize=2, color="#1971c2")
        right.axvline(self.best_k, color="#e8590c", label=f"best: k = {self.best_k}")
        right.axvline(self.one_se_k, color="#e8590c", linestyle=":", label=f"one standard error: k = {self.one_se_k}")
        right.set(xlabel="k", title=f"Score on rows held out, {self.scores.shape[1]} folds")
        right.legend(fontsize=9, frameon=False)
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(color="0.92")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
        return path


def sparse_path(
    estimator: Any,
    X: Any,
    y: Any,
    ks: Sequence[int] | None = None,
    *,
    cv: Any = 5,
    scoring: Any = None,
    sample_weight: Any = None,
    names: Sequence[str] | None = None,
    progress: Show = None,
) -> SparsePath:
    """Fit an estimator for every number of coefficients, and score each on rows held out.

    Args:
        estimator: a :class:`SparseLinearRegression` or :class:`SparseLogisticRegression`, or any other with a ``k`` and
            a ``coef_``; it stays as it is.
        X: ``[n, d]``.
        y: ``[n]``.
        ks: numbers of coefficients. None: 1 to d, 30 at most.
        cv: folds, as scikit-learn takes them (a number, a splitter, an iterable).
        scoring: a scorer or its name; None for the estimator's own score.
        sample_weight: ``[n]``, of fits and scores.
        names: of the features; None for a frame's columns, or numbers.
        progress: True, False or a function, see :mod:`sparse_accel.progress`: a step is a fit.

    Raises:
        TypeError: the estimator has no ``k``.
        ValueError: ``ks`` are not numbers from 1 to d, not one name per feature, or data that do not fit.

    Example:
        >>> from sparse_accel.linear_model import SparseLinearRegression
        >>> random = np.random.default_rng(0)
        >>> X = random.normal(size=(60, 6))
        >>> path = sparse_path(SparseLinearRegression(), X, X[:, 1] - X[:, 4] + 0.1 * random.normal(size=60))
        >>> path.one_se_k, path.estimator(2).support_
        (2, array([1, 4]))
    """
    check_progress(progress)
    if not hasattr(estimator, "get_params") or "k" not in estimator.get_params():
        raise TypeError(f"estimator: expected one with a parameter k, got {type(estimator).__name__}")
    if names is None and hasattr(X, "columns"):
        names = list(X.columns)
    X, y = indexable(X if hasattr(X, "shape") else np.asarray(X), y)
    d = int(_num_features(X))
    numbers = list(range(1, min(MOST, d) + 1)) if ks is None else sorted({int(k) for k in ks})
    if not numbers or numbers[0] < 1 or numbers[-1] > d or (ks is not None and any(int(k) != k for k in ks)):
        raise ValueError(f"ks: expected whole numbers from 1 to {d}, the number of features, got {ks!r}")
    called = [str(name) for name in (range(d) if names is None else names)]
    if len(called) != d:
        raise ValueError(f"names: expected one for each of the {d} features, got {len(called)}")
    weights = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=np.float64)
    score = _score(scoring)
    folds = list(check_cv(cv, y, classifier=is_classifier(estimator)).split(X, y))
    scores = np.zeros((len(numbers), len(folds)))
    everything = [clone(estimator).set_params(k=k) for k in numbers]
    with meter(progress, "sparse_path", len(numbers) * (len(folds) + 1)) as steps:
        for place, model in enumerate(everything):
            for number, (train, test) in enumerate(folds):
                fold = clone(model).fit(_take(X, train), _take(y, train), **_weights(weights, train))
                scores[place, number] = score(fold, _take(X, test), _take(y, test), **_weights(weights, test))
                steps.advance(f"k = {model.k}")
            model.fit(X, y, **_weights(weights, slice(None)))
            steps.advance(f"k = {model.k}")
    coefs = np.stack([model.coef_[0] if len(np.shape(model.coef_)) == 2 and len(model.coef_) == 1 else model.coef_
                      for model in everything])  # fmt: skip
    mean, error = scores.mean(1), _standard_error(scores)
    best = int(mean.argmax())
    near = int((mean >= mean[best] - error[best]).argmax())
    spread = _spread(X, weights)
    return SparsePath(numbers, coefs, scores, numbers[best], numbers[near], everything, called, spread)


def _score(scoring: Any) -> Any:
    if scoring is None:
        return lambda model, X, y, **options: model.score(X, y, **options)
    return scoring if callable(scoring) else get_scorer(scoring)


def _weights(weights: Any, rows: Any) -> dict[str, Any]:
    return {} if weights is None else {"sample_weight": weights[rows]}


def _take(data: Any, rows: np.ndarray) -> Any:
    return (
        data.iloc[rows] if hasattr(data, "iloc") else data[rows] if hasattr(data, "shape") else np.asarray(data)[rows]
    )


def _standard_error(scores: np.ndarray) -> np.ndarray:
    folds = scores.shape[1]
    return scores.std(1, ddof=1) / np.sqrt(folds) if folds > 1 else np.zeros(len(scores))


def _largest(coef: np.ndarray) -> np.ndarray:
    """``[d]``: of several predictors the coefficient largest in magnitude."""
    return coef if coef.ndim == 1 else np.take_along_axis(coef, np.abs(coef).argmax(0)[None], 0)[0]


def _spread(X: Any, weights: Any) -> np.ndarray:
    share = np.full(X.shape[0], 1 / X.shape[0]) if weights is None else weights / weights.sum()
    dense = X.toarray() if hasattr(X, "toarray") else np.asarray(X, dtype=np.float64)
    return np.sqrt(share @ np.square(dense - share @ dense))
