"""Sparse recovery: any loss, minibatches, warm starts, stopping, history."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from recovery_cases import planted
from torch.nn import functional as F

from sparse_accel.sparse_recovery import METHODS, LeastSquares, Logistic, Problem, Recovery, Stopping, solve


def same(one: Recovery, two: Recovery) -> None:
    torch.testing.assert_close(one.theta.flatten(), two.theta.flatten(), rtol=1e-6, atol=1e-8)
    assert torch.equal(one.support.flatten(), two.support.flatten())


# Any loss


@pytest.mark.parametrize("method", METHODS)
def test_any_loss_is_solved_like_least_squares(method: str) -> None:
    A, b, _ = planted(rows=40, size=24, nonzeros=4, noise=0.01, least=0.5)
    problem = Problem(lambda theta: (A @ theta.reshape(24) - b).square().mean() / 2, (4, 6), dtype=torch.float64)
    one = solve(problem, 4, method, iterations=500)
    assert one.theta.shape == one.support.shape == (4, 6)
    same(one, solve(LeastSquares(A, b), 4, method, iterations=500))


@pytest.mark.parametrize("curvature", ["hessian", "diagonal", "fisher"])
@pytest.mark.parametrize("rows", [None, 9])
def test_derivatives_are_those_of_the_formulas(curvature: str, rows: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    A, theta, u = (
        torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((2, 30, 80), (2, 80), (2, 80))
    )
    y = (torch.rand(2, 30, generator=generator) < 0.5).double()

    def losses(theta: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        v = torch.einsum("bnd,bd->bn", A[:, rows], theta)
        return F.softplus(v) - y[:, rows] * v

    made = Problem(losses, (2, 80), samples=30, batch_dims=1, dtype=torch.float64)
    known = Logistic(A, y)
    index = torch.tensor([[0, 5, 79], [3, 4, 70]])
    where = None if rows is None else torch.arange(0, 30, 3)[:rows]
    close = torch.testing.assert_close
    close(made.loss(theta, where), known.loss(theta, where))
    close(made.gradient(theta, where), known.gradient(theta, where))
    close(made.product(theta, u, where), known.product(theta, u, where))
    close(made.hessian(theta, where), known.hessian(theta, where))
    close(made.hessian_on(theta, index, where), known.hessian_on(theta, index, where))
    close(made.diagonal(theta, where), known.diagonal(theta, where))
    close(made.sample_gradients(theta, where), known.sample_gradients(theta, where))
    close(known.hessian(theta).diagonal(dim1=1, dim2=2), known.diagonal(theta))
    eigenvalues = torch.linalg.eigvalsh(known.hessian(theta, where))
    assert (eigenvalues[:, -1] <= known.smoothness(where)).all()
    same(solve(made, 5, curvature=curvature, iterations=15, ridge=0.01),
         solve(known, 5, curvature=curvature, iterations=15, ridge=0.01))  # fmt: skip


def test_an_operation_without_a_batching_rule() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            (x,) = ctx.saved_tensors
            if torch._C._functorch.is_batchedtensor(grad):
                raise RuntimeError("no batching rule")
            return 2 * x * grad

    target = torch.tensor([1.0, -3.0, 2.0], dtype=torch.float64)
    result = solve(Problem(lambda theta: Square.apply(theta - target).sum(), 3, dtype=torch.float64), 2)
    torch.testing.assert_close(result.theta, torch.tensor([0.0, -3.0, 2.0], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_that_are_not_convex(dtype: torch.dtype) -> None:
    """Double wells: the Hessian at 0 is negative, and damping is what makes the step one downhill."""
    depth = torch.tensor([1.0, 3.0, 2.0, 0.5], dtype=dtype)
    problem = Problem(lambda t: (depth * (t.square() - 1).square()).sum(), initial=torch.full((4,), 0.1, dtype=dtype))
    for method in METHODS:
        result = solve(problem, 2, method, iterations=300, stop=Stopping(gradient=1e-3))
        assert result.converged, method
        assert torch.isfinite(result.theta).all()
        assert float(result.history.gradient[-1]) < 0.01
    assert float(solve(problem, 2).damping) >= 1


def test_constant_and_linear_losses() -> None:
    assert not solve(Problem(lambda theta: torch.zeros(()), 3), 2).theta.any()
    assert solve(Problem(lambda theta: theta.sum(), 3), 1, "iht", step=0.5, iterations=2).theta.tolist() == [-1, 0, 0]


def test_a_network() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 4, generator=generator, dtype=torch.float64)
    y = (1.5 * x[:, 0]).tanh() - x[:, 2].tanh()

    def losses(theta: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return ((x[rows] @ theta[:4]).tanh() @ theta[4] - y[rows]).square()

    initial = 0.5 * torch.randn(5, 4, generator=generator, dtype=torch.float64)
    problem = Problem(losses, initial=initial, samples=100)
    dense = solve(problem, 20, iterations=100, ridge=1e-4)
    for curvature in ("hessian", "fisher"):
        pruned = solve(problem, 8, initial=dense.theta, curvature=curvature, iterations=60, ridge=1e-4)
        plain = solve(problem, 8, "iht", initial=dense.theta, iterations=60, ridge=1e-4)
        assert float(pruned.loss) <= float(plain.loss) + 1e-4
        assert float(pruned.loss) < 0.01


# Minibatches


@pytest.mark.parametrize("curvature", ["hessian", "diagonal"])
def test_an_epoch_of_minibatches_gives_the_model_of_all_rows(curvature: str) -> None:
    A, b, theta = planted(rows=200, size=40, nonzeros=6, noise=0.01, least=0.3)
    problem = LeastSquares(A, b)
    result = solve(problem, 6, curvature=curvature, batch_size=32, iterations=7 * 20)
    assert torch.equal(result.support, theta != 0)
    exact = solve(problem, 6)
    assert float(result.loss) <= (1.001 if curvature == "hessian" else 1.05) * float(exact.loss)
    if curvature == "hessian":
        once = solve(problem, 6, batch_size=32, iterations=7, damping=0.0)  # 6 batches of 32 rows and one of 8
        torch.testing.assert_close(once.theta, exact.theta, rtol=1e-6, atol=1e-8)
    assert result.history.iteration.tolist() == list(range(0, 141, 7))


@pytest.mark.parametrize("method", METHODS)
def test_minibatches_are_decided_by_the_seed(method: str) -> None:
    A, b, theta = planted(rows=300, size=40, nonzeros=4, noise=0.005, least=1.0)
    problem = LeastSquares(A, b)
    runs = [solve(problem, 4, method, batch_size=50, iterations=60, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].theta, runs[1].theta)
    assert torch.equal(runs[0].history.loss, runs[1].history.loss)
    if method != "htp":
        assert not torch.equal(runs[0].history.loss, runs[2].history.loss)
    for result in runs:
        assert torch.equal(result.support, theta != 0)
        assert float(result.loss) < 0.01 * float(result.history.loss[0])
    assert not {"step"} & set(runs[0].reasons)  # off by default


@pytest.mark.parametrize("curvature", ["hessian", "diagonal", "fisher"])
def test_minibatches_of_logistic_regression(curvature: str) -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(1000, 20, generator=generator, dtype=torch.float64)
    y = torch.rand(1000, generator=generator, dtype=torch.float64) < (A[:, :3] @ A.new_tensor([2, -1.5, 1])).sigmoid()
    problem = Logistic(A, y.double())
    exact = solve(problem, 3)
    result = solve(problem, 3, curvature=curvature, batch_size=50, iterations=20 * 20)
    assert torch.equal(result.support, exact.support)
    assert float(result.loss) <= float(exact.loss) + (1e-4 if curvature != "fisher" else 0.01)


# Starts, stopping, history


def test_warm_starts() -> None:
    A, b, _ = planted(rows=60, size=40, nonzeros=6, noise=0.05)
    problem = LeastSquares(A, b)
    first = solve(problem, 10, "niht", iterations=500)
    again = solve(problem, 10, "niht", initial=first.theta)
    assert again.iterations <= 2
    torch.testing.assert_close(again.theta, first.theta, rtol=1e-6, atol=1e-8)
    # From a k-sparse start no method ends above it, whatever greedy elimination would choose.
    for method in ("iobs", "topk_iobs", "iht", "htp"):
        assert float(solve(problem, 10, method, initial=first.theta).loss) <= float(first.loss) * (1 + 1e-12)
    dense = torch.linalg.lstsq(A, b[:, None]).solution[:, 0]
    before = dense.clone()
    same(solve(problem, 10, initial=dense), solve(problem, 10))
    assert torch.equal(dense, before)
    given_start = Problem(lambda t: (A @ t - b).square().mean() / 2, initial=first.theta)
    assert float(given_start.loss(given_start.initial)) == pytest.approx(float(first.loss))


def test_stopping_rules() -> None:
    A, b, _ = planted(rows=60, size=40, nonzeros=6, noise=0.05)
    problem = LeastSquares(A, b)
    full = solve(problem, 10, "iht", iterations=30, stop=Stopping(step=-1))
    assert full.reasons == ("iterations",)
    assert not full.converged
    assert full.iterations == 30

    gradient = solve(problem, 10, "iht", stop=Stopping(gradient=1e-3))
    assert gradient.reasons == ("gradient",)
    assert float(gradient.history.gradient[-1]) <= 1e-3 < float(gradient.history.gradient[-2])

    loss = solve(problem, 10, "iht", stop=Stopping(loss=1e-2))
    assert loss.reasons == ("loss",)
    fall = (loss.history.loss[:-1] - loss.history.loss[1:]) / loss.history.loss[1:]
    assert float(fall[-1]) <= 1e-2 < float(fall[:-1].min())

    support = solve(problem, 10, "iht", stop=Stopping(support=4))
    assert support.reasons == ("support",)
    assert support.history.changes[-4:].tolist() == [0] * 4
    assert int(support.history.changes[-5]) > 0

    step = solve(problem, 10, "iht", iterations=1000, stop=Stopping(step=1e-3))
    assert step.reasons == ("step",)
    assert solve(problem, 10, iterations=0).iterations == 0


def test_history_and_result() -> None:
    A, b, _ = planted(batch=3, rows=60, size=40, nonzeros=6, noise=0.05)
    result = solve(LeastSquares(A, b), 10, "iht", iterations=20)
    history = result.history
    assert len(history) == 21
    assert history.iteration.tolist() == list(range(21))
    assert history.loss.shape == history.changes.shape == history.gradient.shape == history.damping.shape == (21, 3)
    assert (history.seconds.diff() > 0).all()
    assert float(history.seconds[0]) == 0
    assert history.changes[1].tolist() == [10] * 3
    torch.testing.assert_close(history.loss[-1], result.loss)
    gradient = torch.einsum("bnd,bn->bd", A, (A @ result.theta[..., None])[..., 0] - b) / 60
    torch.testing.assert_close(history.gradient[-1], (gradient * result.support).abs().amax(1))
    assert str(result).startswith("3 problems: 10 of 40 coordinates, loss 0.00")
    assert str(result).endswith("20 iterations, ended by: iterations")


def test_refit_at_the_end_is_the_least_squares_of_the_support() -> None:
    A, b, _ = planted(noise=0.05)
    plain, refitted = (solve(LeastSquares(A, b), 20, "iht", iterations=30, refit=refit) for refit in (False, True))
    assert torch.equal(plain.support, refitted.support)
    places = plain.support.nonzero().flatten()
    torch.testing.assert_close(refitted.theta[places], torch.linalg.lstsq(A[:, places], b[:, None]).solution[:, 0])
    assert len(refitted.history) == len(plain.history) + 1
    off = solve(LeastSquares(A, b), 20, refit=False)
    on = solve(LeastSquares(A, b), 20)
    assert torch.equal(off.support, on.support)
    assert float(off.loss) > float(on.loss)
    dense = torch.linalg.lstsq(A, b[:, None]).solution[:, 0]
    torch.testing.assert_close(off.theta[off.support], dense[off.support])


@pytest.mark.parametrize("method", METHODS)
def test_none_and_all(method: str) -> None:
    A, b, _ = planted(rows=30, size=8, nonzeros=3, noise=0.1)
    nothing = solve(LeastSquares(A, b), 0, method)
    assert not nothing.theta.any()
    assert not nothing.support.any()
    everything = solve(LeastSquares(A, b), 8, method, iterations=1000)
    torch.testing.assert_close(everything.theta, torch.linalg.lstsq(A, b[:, None]).solution[:, 0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_float32_stays_float32(method: str) -> None:
    A, b, theta = planted(noise=0.01, least=0.3, dtype=torch.float32)
    result = solve(LeastSquares(A, b), 16, method)
    assert result.theta.dtype == result.loss.dtype == torch.float32
    assert torch.equal(result.support, theta != 0)


def test_a_step_too_long_is_said(caplog: pytest.LogCaptureFixture) -> None:
    A, b, _ = planted(rows=60, size=40, nonzeros=6)
    with caplog.at_level(logging.WARNING, "sparse_accel"):
        result = solve(LeastSquares(A, b), 10, "iht", step=1e9, iterations=200)
    assert result.reasons == ("diverged",)
    assert not result.converged
    assert torch.isfinite(result.theta).all()
    assert "1 of 1 runs diverged at step=1000000000.0" in caplog.text
    small = solve(LeastSquares(A.float(), b.float()), 10, "iht", step=1e9, iterations=200, batch_size=20)
    assert small.reasons == ("diverged",)
    assert torch.isfinite(small.theta).all()
    assert torch.isfinite(small.loss)


def test_singular_curvature_is_said(caplog: pytest.LogCaptureFixture) -> None:
    A, b, _ = planted(rows=60, size=20, nonzeros=4, noise=0.01)
    A[:, 10:] = A[:, :10]
    for method in ("iobs", "topk_iobs", "htp"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "sparse_accel"):
            result = solve(LeastSquares(A, b), 15, method)
        assert float(result.damping) > 0, method
        assert f"by {method}: singular or indefinite curvature, damping raised from 0 to" in caplog.text
        assert torch.isfinite(result.theta).all()
    caplog.clear()
    assert float(solve(LeastSquares(A, b), 15, ridge=1e-3).damping) == 0
    assert float(solve(LeastSquares(A, b), 15, damping=1e-2).damping) == 1e-2
    assert not caplog.records
