"""Passes of single-row implicit steps: which row comes when, and where the iterates are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from sparse_accel.ops import glm_epoch
from sparse_accel.optim._exact import with_column

# A row of weight w takes w steps in a pass; the mean weight is brought into this range, so that a pass has about as
# many steps as there are rows, and not thousands of times that.
MEAN_WEIGHT = (1.0, 16.0)


@dataclass
class Iterates:
    """Where the predictors are, one row each.

    Attributes:
        x, last: the iterates and those before them, [predictors, p].
        total: sum of the averaged iterates, float64 [predictors, p].
        counted: how many.
        random: draws orders.
    """

    x: np.ndarray
    last: np.ndarray
    total: np.ndarray
    counted: int
    random: np.random.RandomState

    @classmethod
    def zeros(cls, predictors: int, size: int, dtype: Any, random: np.random.RandomState) -> Iterates:
        """At zero."""
        x = np.zeros((predictors, size), dtype=dtype)
        return cls(x, x.copy(), np.zeros((predictors, size)), 0, random)

    def copy(self) -> Iterates:
        """What a fit may move; random numbers go on from the same state."""
        random = np.random.RandomState()
        random.set_state(self.random.get_state())
        return Iterates(self.x.copy(), self.last.copy(), self.total.copy(), self.counted, random)

    def run(
        self, rows: Tensor, targets: list[np.ndarray], order: np.ndarray, start: int, numbers: tuple[Any, ...]
    ) -> None:
        """Steps of single rows; iterates from step ``start`` on are averaged.

        Args:
            rows: [n, p].
            targets: [n] of each predictor.
            order: the row of each step.
            start: see above.
            numbers: step size, momentum and family, for :func:`~sparse_accel.ops.glm_epoch`.
        """
        if not len(order):
            return
        steps = torch.from_numpy(np.ascontiguousarray(order, dtype=np.int64))
        for number, y in enumerate(targets):
            x, last = (torch.tensor(own[number], dtype=rows.dtype, device="cpu") for own in (self.x, self.last))
            average = torch.zeros(rows.shape[1], dtype=torch.float64, device="cpu")
            wanted = torch.from_numpy(np.ascontiguousarray(y, dtype=np.float64))
            glm_epoch(x, last, rows, wanted, steps, *numbers, average=average, average_start=start)
            self.x[number], self.last[number] = x.numpy(), last.numpy()
            self.total[number] += average.numpy() * (len(order) - start)
        self.counted += len(order) - start

    def result(self, averaging: bool) -> np.ndarray:
        """The mean of the averaged iterates, or the last ones: float64 [predictors, p]."""
        return self.total / self.counted if averaging and self.counted else self.x.astype(np.float64)


def as_rows(X: Any, intercept: bool) -> Tensor:
    """Rows ``[n, d]``, dense or CSR; with a column of ones at the end for an intercept."""
    if sparse.issparse(X):
        indices = (torch.from_numpy(X.indptr.astype(np.int64)), torch.from_numpy(X.indices.astype(np.int64)))
        rows = torch.sparse_csr_tensor(
            *indices, torch.from_numpy(X.data), X.shape, check_invariants=False, device="cpu"
        )
    else:
        rows = torch.from_numpy(np.array(X, order="C"))
    return with_column(rows, 1.0) if intercept else rows


def order_of_rows(X: Any, y: np.ndarray) -> np.ndarray:
    """An order of the rows that does not depend on where they stand: by a random projection, then the target.

    With it a fit gives the same for rows in any order, and for repeated rows what their weights give.
    """
    direction = np.random.RandomState(0).standard_normal(X.shape[1])
    if sparse.issparse(X):
        key = X.astype(np.float64) @ direction
    else:  # row by row in one order of additions: equal rows get equal keys
        parts = [(X[start : start + 4096] * direction).sum(1) for start in range(0, len(X), 4096)]
        key = np.concatenate(parts)
    return np.lexsort((y, key))


def passes_over(
    rows: np.ndarray, weights: Any, passes: int, random: np.random.RandomState, *, scale: bool = True
) -> np.ndarray:
    """The row of each step.

    Without weights each row once in a pass, in random order. A row of weight w takes w steps in each pass, of a broken
    number that many on average: its steps in all passes differ from their sum by less than one.

    Args:
        rows: numbers of the rows.
        weights: of the rows in that order, > 0, or None.
        passes: how many.
        random: draws the orders.
        scale: bring the mean weight into :data:`MEAN_WEIGHT`.
    """
    if weights is None:
        return np.concatenate([rows[random.permutation(len(rows))] for _ in range(passes)])
    mean = weights.mean()
    if scale and not MEAN_WEIGHT[0] <= mean <= MEAN_WEIGHT[1]:
        weights = weights * (min(max(mean, MEAN_WEIGHT[0]), MEAN_WEIGHT[1]) / mean)
    whole = bool((weights == np.floor(weights)).all())
    shift = np.zeros(len(weights)) if whole else random.uniform(size=len(weights))
    found, taken = [], np.floor(shift)
    for number in range(1, passes + 1):
        due = np.floor(shift + number * weights)
        steps = np.repeat(rows, (due - taken).astype(np.int64))
        found.append(steps[random.permutation(len(steps))])
        taken = due
    return np.concatenate(found)
