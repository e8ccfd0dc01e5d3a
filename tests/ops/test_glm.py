"""Proximal steps of generalized linear models: optimality, the twins, CSR, refusals; every backend."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import sparse_accel as sa
from sparse_accel import native, ops
from sparse_accel.native import glm as native_glm
from sparse_accel.ops import glm
from sparse_accel.reference import glm as reference_glm

FAMILIES = glm.FAMILIES
LRS = [10.0**k for k in range(-6, 7, 2)]


def problem(family: str, rows: int, columns: int, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """z, features with a zero row, targets of the family with its edges among them; float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    features, z = draw(rows, columns) * scale, draw(columns)
    if rows > 1:
        features[rows // 2] = 0
    features[torch.rand(features.shape, generator=generator) < 0.3] = 0
    if family == "binomial":
        targets = (draw(rows) > 0).double()
    elif family == "poisson":
        targets = (draw(rows) * 3).clamp(min=0).round()
    else:
        targets = draw(rows) * 2
    return z, features, targets


def error(x: Tensor, z: Tensor, features: Tensor, targets: Tensor, lr: float, family: str) -> float:
    """Norm of the joint optimality condition ``(x - z) / lr + gradient(x)``, over that of its terms."""
    slopes = reference_glm.slope(family, features @ x, targets)
    pull, gradient = (x - z) / lr, features.T @ slopes / len(targets)
    rounding = features.abs().T @ (slopes.abs() + (features.abs() @ (x.abs() + z.abs()) + targets.abs())) / len(targets)
    total = pull.norm() + gradient.norm() + 1e-4 * rounding.norm() + 1e-4 * (x.norm() + z.norm()) / lr
    return float((pull + gradient).norm() / total.clamp(min=1e-300))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sparse", [False, True])
def test_joint_is_optimal(backend: Any, family: str, sparse: bool) -> None:
    for seed, (rows, columns) in enumerate([(1, 3), (5, 12), (12, 5), (6, 6)]):
        for scale in (1e-3, 1.0, 10.0):
            z, features, targets = problem(family, rows, columns, seed, scale)
            for lr in LRS:
                given_rows = features.to_sparse_csr() if sparse else features
                numbers = (t.to(backend.device) for t in (z, given_rows, targets))
                x, iterations = sa.glm_prox(*numbers, lr, family, "joint")
                found = error(x.cpu(), z, features, targets, lr, family)
                assert found < 1e-10, (rows, columns, scale, lr, found)
                assert iterations.dtype == torch.int64
                assert int(iterations) < 100


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["single", "average"])
def test_single_rows_are_optimal(backend: Any, family: str, mode: str) -> None:
    """The average is put together from the single steps, and each of them meets its own condition."""
    for lr in LRS:
        z, features, targets = problem(family, 1 if mode == "single" else 7, 5, 3, 3.0)
        x, _ = sa.glm_prox(*(t.to(backend.device) for t in (z, features, targets)), lr, family, mode)
        steps = []
        for i in range(len(targets)):
            row = features[i : i + 1], targets[i : i + 1]
            alone, iterations = sa.glm_prox(*(t.to(backend.device) for t in (z, *row)), lr, family, "single")
            assert error(alone.cpu(), z, *row, lr, family) < 1e-10, (lr, i)
            assert int(iterations) <= 40
            steps.append(alone.cpu() - z)
        torch.testing.assert_close(x.cpu(), z + torch.stack(steps).mean(0), rtol=1e-12, atol=1e-12)


def exact_root(family: str, u: float, q: float, y: float, lr: float) -> mpmath.mpf:
    """xi = -lr slope(u + xi q) with 60 digits, by bisection."""
    with mpmath.workdps(60):
        u, q, y, lr = (mpmath.mpf(number) for number in (u, q, y, lr))
        slope = (lambda v: 1 / (1 + mpmath.exp(-v)) - y) if family == "binomial" else (lambda v: mpmath.exp(v) - y)
        bound = -lr * slope(u)
        low, high = min(bound, 0), max(bound, 0)
        if family == "poisson" and high - low > 1e30:
            low = -(abs(u) + abs(mpmath.log(lr * q)) + 10) / q
        for _ in range(220):
            middle = (low + high) / 2
            if middle + lr * slope(u + middle * q) > 0:
                high = middle
            else:
                low = middle
        return (low + high) / 2


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["binomial", "poisson"]),
    st.floats(-40, 40) | st.sampled_from([0.0, 700.0, -700.0, 3000.0, -3000.0]),
    st.integers(-20, 20),
    st.integers(0, 30),
    st.floats(-6, 6),
)
@example("poisson", 7.433450968614252e-14, 0, 1, 0.0)  # y and the mean cancel
def test_scalar_root_to_full_precision(family: str, u: float, exponent: int, count: int, log_lr: float) -> None:
    """One column of a power of two: predictor and norm are exact, what is left is the root."""
    a, lr, y = 2.0**exponent, 10.0**log_lr, float(count % 2 if family == "binomial" else count)
    z = torch.zeros(2, dtype=torch.float64)
    z[0] = u / a
    features = torch.tensor([[a, 0.0]], dtype=torch.float64)
    x, iterations = sa.glm_prox(z, features, torch.tensor([y]), lr, family, "single")
    expected = z[0].item() + float(exact_root(family, u, a * a, y, lr)) * a
    size = abs(z[0].item()) + abs(expected)
    assert abs(x[0].item() - expected) <= 1e-13 * size + 1e-300
    assert int(iterations) <= 30


@pytest.mark.parametrize("lr", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("family", FAMILIES)
def test_extremes_stay_finite(backend: Any, family: str, lr: float) -> None:
    """Predictors where exp overflows, norms from 1e-8 to 1e8, zero rows; float32 too."""
    for dtype in (torch.float32, torch.float64):
        for norm in (0.0, 1e-8, 1e8):
            z = torch.tensor([900.0, -900.0], dtype=dtype, device=backend.device)
            features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [norm, norm]], dtype=dtype, device=backend.device)
            targets = torch.tensor([1.0, 0.0, 1.0], device=backend.device)
            x, iterations = sa.glm_prox(z, features, targets, lr, family, "average")
            assert x.dtype == dtype
            assert x.isfinite().all(), (dtype, norm)
            assert int(iterations) <= 40
    x, _ = sa.glm_prox(z, features[:1], targets[:1], lr, family, "joint")
    assert x.isfinite().all()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-9)])
@pytest.mark.parametrize("family", FAMILIES)
def test_prox_equals_the_twin(backend: Any, family: str, dtype: torch.dtype, tolerance: float) -> None:
    for mode in ("average", "joint"):
        for lr in (0.1, 30.0):
            z, features, targets = (t.to(dtype) for t in problem(family, 6, 300 if mode == "average" else 8, 5, 0.3))
            expected, _ = reference_glm.glm_prox(z, features, None, None, targets, lr, family, mode, 1.0)
            for rows in (features, features.to_sparse_csr()):
                found, _ = sa.glm_prox(*(t.to(backend.device) for t in (z, rows, targets)), lr, family, mode)
                torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("beta", [0.0, 0.5, -0.3, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_epoch_equals_the_loop(backend: Any, family: str, beta: float) -> None:
    emulated = backend.name == "cuda-emulated"
    z, features, targets = problem(family, 9, 7, 1)
    features[:, 6] = 0  # a column that no row touches
    order = torch.randint(9, (8 if emulated else 40,), generator=torch.Generator().manual_seed(0))
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        first = [z.to(dtype), (z * 0.9).to(dtype)]
        expected = [t.clone() for t in first]
        mean = torch.zeros(7, dtype=torch.float64)
        numbers = (targets, order, 0.2, beta, family, 1.0, mean, 3)
        reference_glm.glm_epoch_(*expected, features.to(dtype), None, None, *numbers)
        for rows in (features.to(dtype), features.to(dtype).to_sparse_csr()):
            x, x_prev = (t.clone().to(backend.device) for t in first)
            average = torch.full((7,), torch.nan, dtype=torch.float64, device=backend.device)
            data = [t.to(backend.device) for t in (rows, targets, order)]
            sa.glm_epoch(x, x_prev, *data, 0.2, beta, family, average=average, average_start=3)
            for found, wanted in ((x, expected[0]), (x_prev, expected[1]), (average, mean)):
                torch.testing.assert_close(found.cpu(), wanted, rtol=tolerance, atol=tolerance)


def test_epoch_is_a_sequence_of_single_steps(backend: Any) -> None:
    """On one backend: the exp of a GPU is not that of the CPU, and has no say in this."""
    z, features, targets = (t.to(backend.device) for t in problem("poisson", 5, 6, 2))
    x, x_prev = z.clone(), z.clone()
    iterations = sa.glm_epoch(x, x_prev, features, targets, torch.arange(5, device=backend.device), 0.5,
                              family="poisson")  # fmt: skip
    counts = []
    for i in range(5):
        z, count = sa.glm_prox(z, features[i : i + 1], targets[i : i + 1], 0.5, "poisson", "single")
        counts.append(int(count))
    # nvcc fuses multiply-adds in each of the two kernels as it sees fit: last bits of each step differ, and a step
    # that ends at its tolerance may end one iteration sooner or later
    fused = backend.name == "cuda"
    tolerance = 1e-12 if fused else 1e-13
    torch.testing.assert_close(x, z, rtol=tolerance, atol=tolerance)
    assert abs(int(iterations) - sum(counts)) <= (len(counts) if fused else 0)


def test_the_bracket_is_of_the_extrapolated_point() -> None:
    """With momentum the step is the proximal one at z, not at x: where a.x and a.z lie on different sides of y."""
    features, targets = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([3.0])
    x, x_prev = torch.tensor([0.5], dtype=torch.float64), torch.tensor([-4.5], dtype=torch.float64)
    wanted, _ = sa.glm_prox(x + 0.9 * (x - x_prev), features, targets, 2.0, "poisson", "single")
    sa.glm_epoch(x, x_prev, features, targets, torch.tensor([0]), 2.0, 0.9, "poisson")
    torch.testing.assert_close(x, wanted, rtol=1e-14, atol=0)
    assert error(x, torch.tensor([5.0], dtype=torch.float64), features, targets, 2.0, "poisson") < 1e-12


def test_gram_and_primal_systems_agree_with_linalg_solve() -> None:
    for rows, columns in ((4, 20), (20, 4)):
        z, features, targets = problem("gaussian", rows, columns, 7)
        x, _ = sa.glm_prox(z, features, targets, 1e3, "gaussian")
        eta = 1e3 / rows
        matrix = torch.eye(columns, dtype=torch.float64) + eta * features.T @ features
        torch.testing.assert_close(x, torch.linalg.solve(matrix, z + eta * features.T @ targets), rtol=1e-9, atol=1e-9)


def test_empty(backend: Any) -> None:
    z = torch.ones(3, device=backend.device)
    none = torch.zeros(0, 3, device=backend.device)
    for mode in ("average", "joint"):
        assert torch.equal(sa.glm_prox(z, none, none[:, 0], 1.0, "poisson", mode)[0], z)
    sa.glm_epoch(z, z.clone(), none, none[:, 0], torch.zeros(0, dtype=torch.int64, device=backend.device), 1.0)
    point = torch.zeros(0, device=backend.device)
    rows = torch.zeros(2, 0, device=backend.device)
    assert sa.glm_prox(point, rows, torch.zeros(2, device=backend.device), 1.0)[0].shape == (0,)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"targets": torch.tensor([1.0, torch.nan])}, "targets: expected finite numbers"),
    ({"targets": torch.tensor([1.0, -1.0]), "family": "poisson"}, "targets: expected counts >= 0 .* got -1"),
    ({"targets": torch.tensor([1.0, -1.0]), "family": "binomial"}, "targets: expected 0 or 1 .* from -1 to 1"),
    ({"targets": torch.zeros(3)}, r"features: expected shape \[3, 3\]"),
    ({"targets": torch.zeros(2, 1)}, "targets: expected a vector"),
    ({"features": torch.zeros(2, 4)}, r"features: expected shape \[2, 3\] .* got \[2, 4\]"),
    ({"features": torch.zeros(2, 4).to_sparse_csr()}, r"features: expected shape \[b, 3\]"),
    ({"features": torch.zeros(2, 3).to_sparse()}, "features: expected a dense or a sparse_csr tensor"),
    ({"lr": 0.0}, "lr: expected a finite number > 0, got 0"),
    ({"lr": float("inf")}, "lr: expected a finite number > 0, got inf"),
    ({"family": "gamma"}, "family: expected 'gaussian', 'binomial', 'poisson' or 'huber', got 'gamma'"),
    ({"delta": -1.0}, "delta: expected a finite number > 0, got -1"),
]


@pytest.mark.parametrize("bad, message", BAD, ids=lambda value: value if isinstance(value, str) else None)
def test_refusals_change_nothing(backend: Any, bad: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"features": torch.ones(2, 3), "targets": torch.ones(2), "lr": 1.0, "family": "gaussian"}
    call = {k: v.to(backend.device) if isinstance(v, Tensor) else v for k, v in (good | bad).items()}
    z = torch.ones(3, device=backend.device)
    with pytest.raises(ValueError, match=message):
        sa.glm_prox(z, **call)
    x_prev = z.clone()
    with pytest.raises(ValueError, match=message):
        sa.glm_epoch(z, x_prev, order=torch.tensor([0, 1], device=backend.device), **call)
    assert torch.equal(z, torch.ones(3, device=backend.device))
    assert torch.equal(z, x_prev)


def test_more_refusals() -> None:
    z, features, targets = torch.ones(3), torch.ones(2, 3), torch.ones(2)
    with pytest.raises(ValueError, match="mode: expected 'single', 'average' or 'joint', got 'all'"):
        sa.glm_prox(z, features, targets, 1.0, mode="all")
    with pytest.raises(ValueError, match="mode 'single': expected one row, got 2"):
        sa.glm_prox(z, features, targets, 1.0, mode="single")
    with pytest.raises(TypeError, match="expected float32 or float64, got float16"):
        sa.glm_prox(z.half(), features.half(), targets, 1.0)
    with pytest.raises(TypeError, match="features: expected the parameters' dtype"):
        sa.glm_prox(z, features.double(), targets, 1.0)
    unsorted = torch.sparse_csr_tensor([0, 2, 2], [1, 0], [1.0, 1.0], (2, 3), check_invariants=False)
    with pytest.raises(ValueError, match="col_indices: expected numbers in"):
        sa.glm_prox(z, unsorted, targets, 1.0)
    order = torch.tensor([0, 2])
    with pytest.raises(ValueError, match=r"order: expected rows in \[0, 2\), got numbers from 0 to 2"):
        sa.glm_epoch(z, z.clone(), features, targets, order, 1.0)
    with pytest.raises(ValueError, match="x and x_prev: expected contiguous vectors that share no memory"):
        sa.glm_epoch(z, z, features, targets, order, 1.0)
    mean = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="average_start: expected 0 <= start < 2"):
        sa.glm_epoch(z, z.clone(), features, targets, order[:1].repeat(2), 1.0, average=mean, average_start=2)


@pytest.mark.parametrize("sparse", [False, True])
def test_opcheck(sparse: bool) -> None:
    z, features, targets = problem("binomial", 4, 3)
    csr = features.to_sparse_csr()
    rows = (csr.values(), csr.crow_indices(), csr.col_indices()) if sparse else (features, None, None)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    if not sparse:  # aot takes no views of a sparse tensor
        utils += ("test_aot_dispatch_dynamic",)
    prox = torch.ops.sparse_accel.glm_prox.default
    torch.library.opcheck(prox, (z, *rows, targets, 1.0, "binomial", "average", 1.0), test_utils=utils)
    order, mean = torch.tensor([2, 0]), torch.zeros(3, dtype=torch.float64)
    arguments = (z, z.clone(), *rows, targets, order, 1.0, 0.5, "binomial", 1.0, mean, 1)
    torch.library.opcheck(torch.ops.sparse_accel.glm_epoch_.default, arguments, test_utils=utils)


def test_other_devices_run_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    z, features, targets = problem("binomial", 4, 3)
    kernel, _ = sa.glm_prox(z, features, targets, 2.0, "binomial", "average")
    monkeypatch.setattr(ops._library, "_on_device", lambda tensor: False)
    twin, _ = sa.glm_prox(z, features.to_sparse_csr(), targets, 2.0, "binomial", "average")
    torch.testing.assert_close(twin, kernel)


@pytest.mark.parametrize("order", ["reverse", "random:1", "random:2"])
def test_results_do_not_depend_on_thread_order(order: str, emulated: ModuleType) -> None:
    z, features, targets = problem("binomial", 3, 300, 4, 0.1)
    csr = features.to_sparse_csr()
    steps = torch.tensor([2, 0, 1])
    found = []
    for name, _, seed in (("forward", "", ""), order.partition(":")):
        emulated.set_order(name, int(seed or 1))
        try:
            for rows in ((features, None, None), (csr.values(), csr.crow_indices(), csr.col_indices())):
                x, x_prev, mean = z.clone(), z * 0.5, torch.zeros(300, dtype=torch.float64)
                native.glm_epoch_(x, x_prev, *rows, targets, steps, 3.0, 0.5, "binomial", 1.0, mean, 1)
                prox, _ = native.glm_prox(z, *rows, targets, 3.0, "binomial", "average", 1.0)
                found.append(torch.stack([prox, x, x_prev, mean]))
        finally:
            emulated.set_order("forward", 1)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


@settings(max_examples=300)
@given(st.data())
def test_what_is_checked_on_the_device(data: st.DataObject) -> None:
    """What is asked there is what the host's check asks."""
    columns = data.draw(st.integers(0, 5))
    index = st.integers(-1, columns + 1)
    lines = data.draw(st.lists(st.lists(index, max_size=4), max_size=4))
    if data.draw(st.booleans()):  # most such rows are wrong
        lines = [sorted({column for column in line if 0 <= column < columns}) for line in lines]
    crow = [0]
    for line in lines:
        crow.append(crow[-1] + len(line))
    if data.draw(st.integers(0, 3)) == 0:
        crow[data.draw(st.integers(0, len(lines)))] += data.draw(st.integers(-9, 9))
    number = st.sampled_from([0.0, 1.0, 1.0, 0.0, -1.0, 0.5, float("nan"), float("inf")])
    targets = data.draw(st.lists(number, min_size=len(lines), max_size=len(lines)))
    family = data.draw(st.sampled_from([*FAMILIES, "cauchy"]))
    col = torch.tensor([column for line in lines for column in line], dtype=torch.int64)
    numbers = (torch.tensor(crow), col, torch.tensor(targets, dtype=torch.float64))
    for sparse in (True, False):
        rows = native_glm.Rows(torch.zeros(len(col)), *(numbers if sparse else (None, None, numbers[2])))
        try:
            native_glm.kernels().check_glm_data("op", *rows[1:], columns, family)
            good = True
        except ValueError:
            good = False
        assert native_glm._fits(rows, columns, family) == good
