"""Which features matter: the path over the number of coefficients on scikit-learn's bundled data, cross-validated.

    python examples/sparse_path.py [--data diabetes | breast_cancer] [--folds 10] [--out out/sparse_path]

``diabetes``: 442 patients, the progress of the disease; the ten measurements with their products and squares, 64
features. ``breast_cancer``: 569 tumours, benign or not, by 30 features of cell nuclei. For every k the k best features
with their coefficients, the score on rows held out, and beside it the lasso's (or L1 logistic regression's) with as
many features, refitted on them without the penalty.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import sklearn
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LinearRegression, LogisticRegression, lars_path
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

import sparse_accel as sa
from sparse_accel.report import format_table


def diabetes() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Measurements, their products and squares; the progress after a year."""
    data = load_diabetes()
    expand = PolynomialFeatures(2, include_bias=False)
    X = expand.fit_transform(StandardScaler().fit_transform(data.data))
    names = [name.replace(" ", "·") for name in expand.get_feature_names_out(data.feature_names)]
    own = [number for number, name in enumerate(names) if name != "sex^2"]  # of two values: sex again
    return X[:, own], data.target, [names[number] for number in own]


def breast_cancer() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Features of cell nuclei; whether the tumour is benign."""
    data = load_breast_cancer()
    return data.data, data.target, list(data.feature_names)


def l1_supports(X: np.ndarray, y: np.ndarray, ks: list[int], classify: bool) -> list[np.ndarray]:
    """The first features that an L1 penalty lets in, as it falls."""
    Z = StandardScaler().fit_transform(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of paths that end early
        if not classify:
            coefs = lars_path(Z, y - y.mean(), method="lasso", max_iter=4 * max(ks))[2].T
        else:
            old = tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 8)
            options = {"solver": "liblinear", "tol": 1e-4, **({"penalty": "l1"} if old else {"l1_ratio": 1.0})}
            coefs = [LogisticRegression(C=C, **options).fit(Z, y).coef_[0] for C in np.logspace(-3, 1, 40)]
    found = [np.flatnonzero(coef) for coef in coefs]
    return [max((support for support in found if len(support) <= k), key=len) for k in ks]


def l1_scores(X: np.ndarray, y: np.ndarray, ks: list[int], folds: list, classify: bool, quiet: bool) -> np.ndarray:
    """Mean score on rows held out, of the features that the L1 penalty picks on the others, [len(ks)]."""
    scores = np.zeros((len(ks), len(folds)))
    for number, (train, test) in enumerate(track(folds, "L1", console=Console(stderr=True), disable=quiet)):
        for place, kept in enumerate(l1_supports(X[train], y[train], ks, classify)):
            if not len(kept):
                scores[place, number] = max(np.bincount(y[test])) / len(test) if classify else 0.0
                continue
            scaler = StandardScaler().fit(X[train][:, kept])
            model = LogisticRegression(C=1e3 / len(train), max_iter=5000) if classify else LinearRegression()
            model.fit(scaler.transform(X[train][:, kept]), y[train])
            scores[place, number] = model.score(scaler.transform(X[test][:, kept]), y[test])
    return scores.mean(1)


def main() -> int:
    """Path, table, plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", choices=["diabetes", "breast_cancer"], default="diabetes")
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--most", type=int, default=15, help="coefficients at most (15)")
    parser.add_argument("--out", type=Path, default=Path("out/sparse_path"), help="folder of the PNG")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    args = parser.parse_args()
    classify = args.data == "breast_cancer"
    X, y, names = breast_cancer() if classify else diabetes()
    if args.folds < 2 or not 1 <= args.most <= X.shape[1]:
        parser.error(f"expected 2 folds or more, and 1 to {X.shape[1]} coefficients")
    kind = StratifiedKFold if classify else KFold
    folds = list(kind(args.folds, shuffle=True, random_state=0).split(X, y))
    ks = list(range(1, args.most + 1))
    estimator = sa.linear_model.SparseLogisticRegression() if classify else sa.linear_model.SparseLinearRegression()
    start = time.perf_counter()
    path = sa.linear_model.sparse_path(estimator, X, y, ks, cv=folds, names=names)
    seconds = time.perf_counter() - start
    print(path)
    others = l1_scores(X, y, ks, folds, classify, args.no_progress)
    score = "accuracy" if classify else "R²"
    rows = [[str(k), *(f"{value:.4f}" for value in pair)] for k, *pair in zip(ks, path.mean, others, strict=True)]
    print(format_table(["k", f"{score}, I-OBS", f"{score}, L1 and refit"], rows, title=f"{args.data}, held out"))
    best = path.estimator(path.one_se_k)
    chosen = ", ".join(names[feature] for feature in np.ravel(best.support_))
    print(
        f"{len(ks) * (len(folds) + 1)} fits in {seconds:.1f} s; k within one standard error: {path.one_se_k}: {chosen}"
    )
    print(f"written: {path.plot(args.out / f'sparse_path_{args.data}.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
