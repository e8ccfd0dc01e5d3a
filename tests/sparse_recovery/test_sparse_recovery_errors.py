"""Sparse recovery: what is refused, and how it is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparse_accel.sparse_recovery import LeastSquares, Logistic, Problem, Stopping, solve

A3, B3 = torch.eye(3), torch.ones(3)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((LeastSquares(A3, B3), 4), {}, "k: expected 0 to 3, got 4"),
        ((LeastSquares(A3, B3), -1), {}, "k: expected 0 to 3, got -1"),
        (
            (LeastSquares(A3, B3), 1, "omp"),
            {},
            "method: expected one of 'iht', 'niht', 'htp', 'topk_iobs', 'iobs', got 'omp'",
        ),
        (
            (LeastSquares(A3, B3), 1),
            {"curvature": "bfgs"},
            "curvature: expected one of 'hessian', 'diagonal', 'fisher', got",
        ),
        ((LeastSquares(A3, B3), 1, "iht"), {"curvature": "fisher"}, "curvature: expected 'hessian' for method 'iht'"),
        ((LeastSquares(A3, B3), 1, "htp"), {"refit": False}, "refit: expected True or None for method 'htp'"),
        ((LeastSquares(A3, B3), 1), {"iterations": -1}, "iterations: expected a whole number >= 0, got -1"),
        ((LeastSquares(A3, B3), 1), {"step": 0.0}, "step: expected a finite number > 0 or None, got 0.0"),
        ((LeastSquares(A3, B3), 1), {"ridge": -1.0}, "ridge: expected a finite number >= 0, got -1.0"),
        (
            (LeastSquares(A3, B3), 1),
            {"damping": float("nan")},
            "damping: expected a finite number >= 0 or None, got nan",
        ),
        ((LeastSquares(A3, B3), 1), {"batch_size": 4}, "batch_size: expected 1 to 3 samples, got 4"),
        ((LeastSquares(A3, B3), 1), {"curvature_samples": 0}, "curvature_samples: expected 1 to 3 samples, got 0"),
        ((LeastSquares(A3, B3), 1), {"seed": 0.5}, "seed: expected a whole number, got 0.5"),
        (
            (LeastSquares(A3, B3), 1),
            {"initial": torch.zeros(2)},
            "initial: expected a tensor of shape \\(3,\\), got \\(2,\\)",
        ),
        (
            (LeastSquares(A3, B3), 1),
            {"initial": torch.tensor([0.0, float("inf"), 0.0])},
            "initial: expected finite numbers, got 1 that are not, the first inf at \\[1\\]",
        ),
        (
            (Problem(torch.sum, 3), 1),
            {"batch_size": 1},
            "batch_size: expected None for a problem without samples, got 1",
        ),
        (
            (Problem(torch.sum, 3), 1),
            {"curvature": "fisher"},
            "curvature: expected a problem with samples for 'fisher'",
        ),
        ((Problem(lambda t: t, 3), 1), {}, "loss: expected a tensor of shape \\(\\), got \\(3,\\)"),
        (
            (Problem(lambda t, rows: t.sum(), 3, samples=5), 1),
            {},
            "loss: expected a tensor of shape \\(5,\\), got \\(\\)",
        ),
        ((Problem(lambda t: 1.0, 3), 1), {}, "loss: expected a tensor of shape \\(\\), got float"),
    ],
)
def test_values_out_of_range(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(*arguments, **options)


def test_wrong_types_and_losses_that_are_not_finite() -> None:
    with pytest.raises(TypeError, match="problem: expected a LeastSquares, Logistic or Problem, got Tensor"):
        solve(A3, 1)  # type: ignore[arg-type]
    for k in (1.5, True, "2"):
        with pytest.raises(TypeError, match=f"k: expected a whole number, got {type(k).__name__}"):
            solve(LeastSquares(A3, B3), k)  # type: ignore[arg-type]
    with pytest.raises(FloatingPointError, match="problem: expected a finite loss at the start, got inf"):
        solve(Problem(lambda theta: theta.log().sum().neg(), 3), 1)
    with pytest.raises(FloatingPointError, match="problem: expected a finite gradient at the start"):
        solve(Problem(lambda theta: theta.abs().sqrt().sum(), 3), 1)


@pytest.mark.parametrize(
    "build, kind, message",
    [
        (lambda: LeastSquares(torch.ones(2, 3) / 0, torch.ones(2)), ValueError, "A: .* got 6 that are not"),
        (lambda: LeastSquares(A3, torch.tensor([1.0, 2.0, float("inf")])), ValueError, "b: .* first inf at \\[2\\]"),
        (lambda: LeastSquares(A3, torch.ones(2)), ValueError, "b: expected shape \\[\\*batch, 3\\], got \\(2,\\)"),
        (lambda: LeastSquares(torch.ones(3), B3), ValueError, "A: expected shape \\[\\*batch, n, d\\]"),
        (lambda: LeastSquares(torch.ones(0, 3), torch.ones(0)), ValueError, "A: expected shape .* got \\(0, 3\\)"),
        (lambda: LeastSquares(A3, B3.double()), ValueError, "b: expected torch.float32 on cpu like A, got"),
        (lambda: LeastSquares(A3.expand(2, 3, 3), torch.ones(5, 3)), ValueError, "b: expected batch dimensions"),
        (lambda: LeastSquares(A3.half(), B3.half()), TypeError, "A: expected float32 or float64, got torch.float16"),
        (lambda: LeastSquares([[1.0]], B3), TypeError, "A: expected a tensor, got list"),
        (lambda: Logistic(A3, 2 * B3), ValueError, "y: expected 0 or 1, got 2.0"),
        (lambda: Problem(3, 3), TypeError, "loss: expected a function of theta, got int"),
        (lambda: Problem(torch.sum), ValueError, "size: expected either size or initial, got neither"),
        (lambda: Problem(torch.sum, 3, initial=B3), ValueError, "size: expected either size or initial, got both"),
        (lambda: Problem(torch.sum, (3, 0)), ValueError, "size: expected positive whole numbers, got \\(3, 0\\)"),
        (lambda: Problem(torch.sum, 3, samples=0), ValueError, "samples: expected a whole number >= 1, got 0"),
        (lambda: Problem(torch.sum, 3, batch_dims=2), ValueError, "batch_dims: expected 0 to 1, got 2"),
        (lambda: Problem(torch.sum, initial=B3.long()), TypeError, "initial: expected float32 or float64"),
        (lambda: Stopping(gradient=-1.0), ValueError, "gradient: expected a number >= 0, got -1.0"),
        (lambda: Stopping(step=float("nan")), ValueError, "step: expected a number or None, got nan"),
        (lambda: Stopping(support=0), ValueError, "support: expected a whole number >= 1 or None, got 0"),
    ],
)  # fmt: skip
def test_problems_that_cannot_be(build: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        build()
