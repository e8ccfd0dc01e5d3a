"""sparse_linear: against dense products and the plain twin, on every backend; gradients; what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import assert_near, randn
from torch import Tensor
from torch.nn import functional

from sparse_accel import ops, reference
from sparse_accel.ops import Bitmask, sparse_linear

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# One rounding of the result, beside sums in another order.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
# Rows and columns: less than a tile, whole tiles, panels with a rest, odd ends, none.
SHAPES = [(1, 1), (3, 7), (8, 256), (9, 257), (64, 512), (75, 300), (130, 523), (0, 5), (5, 0)]


def sparse(rows: int, columns: int, kept: float, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    dense = randn((rows, columns), torch.float32, CPU, seed)
    keep = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed + 1)) < kept
    return (dense * keep).to(device, dtype)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(x.double(), weight.double(), None if bias is None else bias.double())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_dense_product(backend: Any, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    rows, columns = shape
    for seed, kept in enumerate((0.5, 0.05, 1.0, 0.0)):
        weight = sparse(rows, columns, kept, dtype, backend.device, seed)
        packed = Bitmask.pack(weight)
        assert torch.equal(packed.check().unpack(), weight)
        for batch in (1, 3) if backend.name == "cuda-emulated" and rows > 100 else (1, 2, 3, 4, 5, 9, 17, 40):
            x, bias = (randn(size, dtype, backend.device, batch) for size in ((batch, columns), (rows,)))
            found = sparse_linear(x, packed, bias)
            expected = product(x, weight, bias).to(dtype)
            scale = float(product(x.abs(), weight.abs(), bias.abs()).max()) if found.numel() else 1.0
            assert_near(found, expected, TOLERANCE[dtype], (batch, kept), scale)


@pytest.mark.parametrize("kept", [0.4, 0.9])
def test_large_batches(backend: Any, kept: float) -> None:
    """Whatever way is chosen for them."""
    weight = sparse(70, 300, kept, torch.float32, backend.device)
    for batch in (33, 95, 96, 130):
        x = randn((batch, 300), torch.float32, backend.device, batch)
        bias = randn((70,), torch.float32, backend.device)
        found = sparse_linear(x, Bitmask.pack(weight), bias, activation="relu")
        assert_near(found, product(x, weight, bias).relu().float(), 3e-6)


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_twin(backend: Any, dtype: torch.dtype, activation: str) -> None:
    packed = Bitmask.pack(sparse(20, 270, 0.5, dtype, backend.device))
    x, bias = randn((2, 3, 270), dtype, backend.device), randn((20,), dtype, backend.device)
    for given_bias in (None, bias):
        found = sparse_linear(x, packed, given_bias, activation=activation)
        twin = reference.sparse_linear(x, *packed[:4], given_bias, packed.rows, activation)
        assert_near(found, twin, TOLERANCE[dtype], activation)
    assert torch.equal(packed.unpack(), reference.sparse_unpack(*packed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_values(backend: Any, dtype: torch.dtype) -> None:
    weight = sparse(75, 523, 0.5, dtype, backend.device)
    packed = Bitmask.pack(weight, int8=True)
    dense = packed.check().unpack()
    assert dense.dtype == torch.float32
    assert torch.equal(packed.mask, weight != 0)
    assert packed.scales is not None
    # half a step of each row's 256 columns
    half_step = packed.scales.repeat_interleave(256, 1)[:, :523] / 2
    assert bool(((dense - weight.float()).abs() <= half_step * (1 + 1e-5)).all())
    assert torch.equal(dense, reference.sparse_unpack(*packed))
    for batch in (1, 3, 9, 40) if backend.name != "cuda-emulated" else (1, 17):
        x = randn((batch, 523), dtype, backend.device)
        assert_near(sparse_linear(x, packed), product(x, dense).to(dtype), TOLERANCE[dtype], batch)


def test_kept_zeros_and_dropped_weights(backend: Any) -> None:
    weight = randn((10, 300), torch.float32, backend.device)
    mask = torch.zeros(10, 300, dtype=torch.bool, device=backend.device)
    mask[::2, 1::3] = True
    weight[2, 1] = 0
    packed = Bitmask.pack(weight, mask)
    assert packed.kept == int(mask.sum())
    assert torch.equal(packed.mask, mask)
    assert torch.equal(packed.unpack(), weight * mask)
    assert torch.equal(Bitmask.pack(weight, mask, int8=True).mask, mask)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(1, 600), st.integers(1, 70), st.floats(0, 1), st.integers(0, 2**16))
def test_any_size(rows: int, columns: int, batch: int, kept: float, seed: int) -> None:
    weight = sparse(rows, columns, kept, torch.float32, CPU, seed)
    x = randn((batch, columns), torch.float32, CPU, seed + 2)
    scale = float(product(x.abs(), weight.abs()).max()) or 1.0
    assert_near(sparse_linear(x, Bitmask.pack(weight)), product(x, weight).float(), 3e-6, scale=scale)


def test_bytes() -> None:
    """Values, one bit per weight, and at most 1 % beside them where tiles are whole."""
    for kept in (0.1, 0.3, 0.5):
        for dtype in DTYPES:
            weight = sparse(512, 1024, kept, dtype, CPU)
            floor = int((weight != 0).sum()) * weight.element_size() + weight.numel() // 8
            assert Bitmask.pack(weight).nbytes <= 1.03 * floor + 64


def test_threads_and_the_rest_of_the_batch_change_no_bit() -> None:
    packed = Bitmask.pack(sparse(300, 1000, 0.5, torch.float32, CPU))
    threads = torch.get_num_threads()
    for batch in (1, 4, 16, 40):
        x, found = randn((batch, 1000), torch.float32, CPU), []
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(sparse_linear(x, packed))
        torch.set_num_threads(threads)
        assert torch.equal(*found)
        assert torch.equal(sparse_linear(x.flip(0), packed).flip(0), found[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh", "silu"])
def test_gradients(backend: Any, dtype: torch.dtype, activation: str) -> None:
    weight = sparse(20, 270, 0.5, dtype, backend.device)
    packed = Bitmask.pack(weight)
    x, bias = randn((3, 2, 270), dtype, backend.device), randn((20,), dtype, backend.device)
    cotangent = randn((3, 2, 20), dtype, backend.device, 5)
    leaves = [t.clone().requires_grad_() for t in (x, packed.values, bias)]
    y = sparse_linear(leaves[0], packed._replace(values=leaves[1]), leaves[2], activation=activation)
    found = torch.autograd.grad(y, leaves, cotangent)
    plain = [t.float().requires_grad_() for t in (x, weight, bias)]
    y = reference.ACTIVATIONS[activation](functional.linear(*plain))
    expected = torch.autograd.grad(y, plain, cotangent.float())
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    assert_near(found[0], expected[0].to(dtype), tolerance)
    assert_near(found[2], expected[2].to(dtype), tolerance)
    of_weight = Bitmask(found[1], *packed[1:]).unpack()
    assert_near(of_weight, (expected[1] * packed.mask).to(dtype), tolerance)
    assert torch.equal(found[1] != 0, Bitmask.pack(of_weight, packed.mask).values != 0)  # nothing between the tiles


def test_unpacking_and_collecting_are_adjoint(backend: Any) -> None:
    packed = Bitmask.pack(sparse(20, 270, 0.5, torch.float32, backend.device))
    values = packed.values.clone().requires_grad_()
    dense = packed._replace(values=values).unpack()
    other = randn((20, 270), torch.float32, backend.device, 3).requires_grad_()
    (collected,) = torch.autograd.grad(dense, values, other.detach())
    assert torch.equal(collected, reference.sparse_collect(other.detach(), *packed[1:3], len(values)))
    again = torch.ops.sparse_accel.sparse_collect(other, *packed[1:3], len(values))
    (back,) = torch.autograd.grad(again, other, packed.values)
    assert torch.equal(back, packed.unpack())


def test_input_views_and_shapes(backend: Any) -> None:
    packed = Bitmask.pack(sparse(12, 30, 0.5, torch.float32, backend.device))
    x = randn((30, 5), torch.float32, backend.device)
    assert torch.equal(sparse_linear(x.t(), packed), sparse_linear(x.t().contiguous(), packed))
    assert sparse_linear(x[:, 0], packed).shape == (12,)
    assert sparse_linear(x.t().view(5, 1, 30)[:0], packed).shape == (0, 1, 12)


def test_nan_shows(backend: Any) -> None:
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]], device=backend.device)
    for activation in ("none", "relu", "silu"):
        x = torch.tensor([[torch.nan, 1.0]], device=backend.device)
        assert bool(sparse_linear(x, Bitmask.pack(weight), activation=activation)[0, 0].isnan())


def _arguments() -> dict[str, Any]:
    values, bits, offsets, *_ = Bitmask.pack(torch.ones(9, 4))
    return {"x": torch.ones(2, 4), "values": values, "bits": bits, "offsets": offsets, "scales": None, "bias": None,
            "rows": 9, "activation": "none"}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(2, 4).double()}, TypeError, "x: expected float32, bfloat16 or float16, got float64"),
        ({"x": torch.ones(2, 4).half()}, TypeError, "values: expected float16, as x, or int8, got float32"),
        (
            {"x": torch.ones(2, 257)},
            ValueError,
            r"bits: expected a contiguous tensor of shape \[4, 256\], got .*\[2, 25",
        ),
        ({"rows": 17}, ValueError, r"bits: expected a contiguous tensor of shape \[3, 256\]"),
        ({"bits": torch.ones(2, 256)}, TypeError, "bits: expected uint8, got float32"),
        ({"offsets": torch.ones(2, dtype=torch.int32)}, ValueError, r"offsets: .* shape \[3\], got shape \[2\]"),
        ({"offsets": torch.ones(3)}, TypeError, "offsets: expected int32, got float32"),
        ({"values": torch.ones(9, 9)}, ValueError, "values: expected a contiguous vector"),
        ({"scales": torch.ones(9, 1)}, ValueError, "scales: expected None, as values are not int8"),
        ({"values": torch.ones(500, dtype=torch.int8)}, ValueError, "scales: expected a tensor, as values are int8"),
        ({"bias": torch.ones(8)}, ValueError, r"bias: expected a contiguous tensor of shape \[9\], got shape \[8\]"),
        ({"bias": torch.ones(9).half()}, TypeError, "bias: expected float32, got float16"),
        ({"activation": "tanh"}, ValueError, "activation: expected 'none', 'relu', .* got 'tanh'"),
    ],
)
def test_errors(backend: Any, change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {
        name: value.to(backend.device) if isinstance(value, Tensor) else value
        for name, value in (_arguments() | change).items()
    }
    with pytest.raises(error, match=f"sparse_linear: {message}"):
        ops._library.call("sparse_linear", *arguments.values())


@pytest.mark.parametrize("backend", ["cpu", "cuda-emulated"], indirect=True)  # a GPU's offsets are not waited for
def test_too_few_values(backend: Any) -> None:
    arguments = _arguments() | {"values": torch.ones(9 * 4)}
    with pytest.raises(ValueError, match="values: expected at least 208 bytes, as offsets say, got 144"):
        ops._library.call("sparse_linear", *arguments.values())


def test_errors_of_packing() -> None:
    packed = Bitmask.pack(torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"weight: expected a dense matrix, got shape \[3\]"):
        Bitmask.pack(torch.ones(3))
    with pytest.raises(TypeError, match=r"weight: expected float32, bfloat16 or float16, got torch.float64"):
        Bitmask.pack(torch.ones(3, 4).double())
    with pytest.raises(TypeError, match=r"mask: expected torch.bool, got torch.float32"):
        Bitmask.pack(torch.ones(3, 4), torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"mask: expected shape \[3, 4\] on cpu, got \[4, 3\] on cpu"):
        Bitmask.pack(torch.ones(3, 4), torch.ones(4, 3).bool())
    with pytest.raises(ValueError, match="expected finite numbers with int8=True"):
        Bitmask.pack(torch.full((3, 4), torch.inf), int8=True)
    with pytest.raises(ValueError, match=r"x: expected 4 columns, got shape \[2, 5\]"):
        sparse_linear(torch.ones(2, 5), packed)
    broken = packed.bits.clone()
    broken[0, 0] = 7
    with pytest.raises(ValueError, match=r"values: expected \[28\]"):
        packed._replace(values=packed.values[:-1]).check()
    with pytest.raises(ValueError, match="bits: expected none outside of 3 rows and 4 columns"):
        packed._replace(bits=broken | 255).check()


def test_opcheck() -> None:
    utils = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    packed = Bitmask.pack(sparse(12, 30, 0.5, torch.float32, CPU))
    x, values = randn((3, 30), torch.float32, CPU).requires_grad_(), packed.values.clone().requires_grad_()
    parts = (values, *packed[1:4])
    namespace = torch.ops.sparse_accel
    for activation in ("none", "silu"):
        arguments = (x, *parts, randn((12,), torch.float32, CPU), 12, activation)
        torch.library.opcheck(namespace.sparse_linear.default, arguments, test_utils=utils)
    torch.library.opcheck(namespace.sparse_unpack.default, (*parts, 12, 30), test_utils=utils)
    dense = randn((12, 30), torch.float32, CPU).requires_grad_()
    torch.library.opcheck(namespace.sparse_collect.default, (dense, *packed[1:3], len(values)), test_utils=utils)


def test_devices_without_kernels_run_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, x = Bitmask.pack(sparse(12, 30, 0.5, torch.float32, CPU)), randn((3, 30), torch.float32, CPU)
    expected = sparse_linear(x, packed)
    monkeypatch.setattr(ops._library, "_on_device", lambda tensor: False)
    torch.testing.assert_close(sparse_linear(x, packed), expected)
    assert packed.unpack().shape == (12, 30)
