"""masked_cg: the constrained optimum, rows that need no step, singular systems; every backend against the twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import randn
from torch import Tensor

import sparse_accel as sa
from sparse_accel import ops, reference

CPU = torch.device("cpu")


def problem(
    rows: int, columns: int, dtype: torch.dtype, device: torch.device, *, samples: int = 0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """W, a mask with an empty and a full row, and the second moments of correlated inputs."""
    mixing = randn((columns, columns), torch.float64, CPU, seed) / columns**0.5 + torch.eye(columns).double()
    inputs = randn((samples or 3 * columns, columns), torch.float64, CPU, seed + 1) @ mixing
    w, mask = randn((rows, columns), torch.float64, CPU, seed + 2), randn((rows, columns), torch.float32, CPU, seed) > 0
    mask[0], mask[-1] = False, True
    h = inputs.T @ inputs / len(inputs)
    return w.to(device, dtype), mask.to(device), h.to(device, dtype)


def optimum(w: Tensor, mask: Tensor, h: Tensor) -> Tensor:
    """Row by row, in float64, by the normal equations on the support."""
    w, h, mask = w.double().cpu(), h.double().cpu(), mask.cpu()
    out = torch.zeros_like(w)
    for row, support in enumerate(mask):
        inside = h[support][:, support]
        out[row, support] = torch.linalg.lstsq(inside, (h @ w[row])[support, None], driver="gelsd").solution[:, 0]
    return out


def error(x: Tensor, w: Tensor, h: Tensor) -> Tensor:
    """``(x - w) H (x - w)`` of each row, in float64."""
    d, h = x.double().cpu() - w.double().cpu(), h.double().cpu()
    return (d @ h * d).sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 40), (20, 300)])
def test_plain_twin(backend: Any, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    w, mask, h = problem(*shape, dtype, backend.device)
    start = randn(shape, dtype, backend.device, 7)
    for iters in (0, 1, 2, 6):
        for begin in (None, start):
            found = sa.masked_cg(w, mask, h, iters, start=begin)
            expected = reference.masked_cg(w, mask, h, iters, begin)
            tolerance = 1e-12 if dtype == torch.float64 else 1e-4
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
            assert not bool(found[~mask].any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reaches_the_optimum(backend: Any, dtype: torch.dtype) -> None:
    w, mask, h = problem(12, 30, dtype, backend.device)
    best = optimum(w, mask, h)
    x = sa.masked_cg(w, mask, h, 80)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-3
    torch.testing.assert_close(x.cpu().double(), best, rtol=tolerance, atol=tolerance)
    gradient = ((x - w) @ h)[mask]
    assert float(gradient.abs().max()) < (1e-11 if dtype == torch.float64 else 1e-4)


def test_error_falls_with_every_step(backend: Any) -> None:
    w, mask, h = problem(9, 40, torch.float64, backend.device)
    errors = torch.stack([error(sa.masked_cg(w, mask, h, iters), w, h) for iters in range(25)])
    assert bool((errors[1:] <= errors[:-1] * (1 + 1e-12)).all())
    best = error(optimum(w, mask, h), w.cpu(), h.cpu())
    torch.testing.assert_close(errors[-1], best, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_solved_row_stays(backend: Any, dtype: torch.dtype) -> None:
    """Steps past the solution change nothing: no division of noise by noise, no NaN."""
    w, mask, h = problem(8, 20, dtype, backend.device)
    x = sa.masked_cg(w, mask, h, 100)
    assert torch.equal(sa.masked_cg(w, mask, h, 200), x)
    again = sa.masked_cg(w, mask, h, 50, start=x)
    torch.testing.assert_close(again, x, rtol=1e-5, atol=1e-5)
    full = torch.ones_like(mask)
    assert torch.equal(sa.masked_cg(w, full, h, 5), w)
    assert not bool(sa.masked_cg(w, ~full, h, 5).any())
    assert not bool(sa.masked_cg(torch.zeros_like(w), full, h, 5).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular(backend: Any, dtype: torch.dtype) -> None:
    """Fewer samples than columns, and dead columns: the error reaches its minimum, the weights stay small."""
    w, mask, h = problem(10, 60, dtype, backend.device, samples=12)
    h[5], h[:, 5] = 0, 0
    h[40], h[:, 40] = 0, 0
    x = sa.masked_cg(w, mask, h, 300)
    assert bool(x.isfinite().all())
    assert float(x.norm()) < 10 * float(w.norm())
    assert torch.equal(x[:, [5, 40]], (w * mask)[:, [5, 40]])
    best, plain = error(optimum(w, mask, h), w, h), error(w * mask, w, h)
    rounding = 1e-6 if dtype == torch.float32 else 1e-13
    assert bool((error(x, w, h) <= best.clamp(min=0) + rounding * plain).all())
    assert torch.equal(sa.masked_cg(w, mask, torch.zeros_like(h), 5), w * mask)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 12), st.integers(0, 2**16))
def test_never_worse_than_the_start(rows: int, columns: int, iters: int, seed: int) -> None:
    w, mask, h = problem(rows, columns, torch.float64, CPU, samples=1 + seed % 12, seed=seed)
    start = randn((rows, columns), torch.float64, CPU, seed + 5)
    x = sa.masked_cg(w, mask, h, iters, start=start)
    before, after = error(start * mask, w, h), error(x, w, h)
    assert bool((after <= before * (1 + 1e-9) + 1e-12).all())
    assert not bool(x[~mask].any())


def test_views_give_the_same(backend: Any) -> None:
    w, mask, h = problem(12, 30, torch.float32, backend.device)
    expected = sa.masked_cg(w, mask, h, 4, start=w)
    strided = [torch.stack([t, t], -1)[..., 0] for t in (w, mask)]
    found = sa.masked_cg(*strided, h.t().contiguous().t(), 4, start=strided[0])
    # H by columns: cuBLAS has another kernel for it, whose sums have another order, as those of the twin have
    tolerance = 1e-4 if backend.name == "cuda" else 1e-5
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(w, problem(12, 30, torch.float32, backend.device)[0])


def test_threads_give_the_same() -> None:
    """The vector parts alone: products of one column are exact in any order."""
    w, mask, _ = problem(3000, 65, torch.float32, CPU)
    h = torch.diag(randn((65,), torch.float32, CPU).abs() + 0.1)
    start, threads, results = torch.zeros_like(w), torch.get_num_threads(), []
    for number in (1, 3):
        torch.set_num_threads(number)
        results.append(sa.masked_cg(w, mask, h, 3, start=start))
    torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_nan_shows(backend: Any) -> None:
    w, mask, h = problem(4, 6, torch.float32, backend.device)
    w[1, 2] = torch.nan
    x = sa.masked_cg(w, mask | True, h, 2, start=torch.zeros_like(w))
    assert x.isnan().any(1).tolist() == [False, True, False, False]


def test_no_elements(backend: Any) -> None:
    for rows, columns in ((0, 4), (4, 0)):
        w = torch.zeros(rows, columns, device=backend.device)
        h = torch.zeros(columns, columns, device=backend.device)
        assert sa.masked_cg(w, w.bool(), h, 3).shape == (rows, columns)


@pytest.mark.parametrize(
    ("change", "error_type", "message"),
    [
        ({"W": torch.ones(2, 3).half()}, TypeError, r"W: expected float32 or float64, got float16"),
        ({"W": torch.ones(3)}, ValueError, r"W: expected a matrix, got shape \[3\]"),
        ({"mask": torch.ones(2, 3)}, TypeError, r"mask: expected bool, got float32"),
        ({"mask": torch.ones(3, 2).bool()}, ValueError, r"mask: expected shape \[2, 3\], got \[3, 2\]"),
        ({"H": torch.eye(3).double()}, TypeError, r"H: expected float32, got float64"),
        ({"H": torch.eye(2)}, ValueError, r"H: expected shape \[3, 3\], got \[2, 2\]"),
        ({"iters": -1}, ValueError, r"iters: expected a number >= 0, got -1"),
        ({"start": torch.ones(2, 2)}, ValueError, r"start: expected shape \[2, 3\], got \[2, 2\]"),
    ],
)
def test_errors(backend: Any, change: dict[str, Any], error_type: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"W": torch.ones(2, 3), "mask": torch.ones(2, 3).bool(), "H": torch.eye(3), "iters": 2}
    arguments |= change
    for name, value in arguments.items():
        arguments[name] = value.to(backend.device) if isinstance(value, Tensor) else value
    with pytest.raises(error_type, match=message):
        sa.masked_cg(**arguments)


def test_opcheck() -> None:
    utils = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    w, mask, h = problem(4, 6, torch.float32, CPU)
    for start in (None, w.clone()):
        arguments = (w, mask, h, 2, start)
        torch.library.opcheck(torch.ops.sparse_accel.masked_cg.default, arguments, test_utils=utils)


def test_devices_without_kernels_run_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    w, mask, h = problem(4, 6, torch.float64, CPU)
    expected = sa.masked_cg(w, mask, h, 3)
    monkeypatch.setattr(ops._library, "_on_device", lambda tensor: False)
    torch.testing.assert_close(sa.masked_cg(w, mask, h, 3), expected)
    meta = [t.to("meta") for t in (w, mask, h)]
    assert sa.masked_cg(*meta, 3).is_meta
