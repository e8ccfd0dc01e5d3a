"""topk_threshold_: what it refuses, and how it fits into PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_cases import randn
from torch import Tensor

import sparse_accel as sa
from sparse_accel import ops
from sparse_accel.groups import GroupLayout


def test_nothing_changes_where_scores_have_nan(backend: Any) -> None:
    for size in (5, 70, 4000, 70_000 if backend.name != "cuda-emulated" else 9000):
        for place in (0, size // 2, size - 1):
            x = randn((2, size), torch.float32, backend.device)
            x[1, place] = torch.nan
            before = x.clone()
            for k, by, layout in (
                (3, "tensor", None), (3, "row", None), ((2, 4), "tensor", None), (0, "tensor", None),
                (2 * size, "tensor", None), (1, "group", "output"), (2, "within", "output")
            ):  # fmt: skip
                with pytest.raises(ValueError, match="scores: expected numbers that can be ordered, got NaN"):
                    sa.topk_threshold_(x, None, k, by=by, layout=layout)
                assert torch.equal(x.nan_to_num(7), before.nan_to_num(7)), (size, place, k, by)


def test_values_need_no_order(backend: Any) -> None:
    """Only scores are looked at: NaN in x goes where its score says."""
    x = torch.tensor([torch.nan, 1.0, torch.nan], device=backend.device)
    mask = sa.topk_threshold_(x, torch.tensor([1.0, 2.0, 3.0], device=backend.device), 2)
    assert mask.tolist() == [False, True, True]
    assert x[:2].tolist() == [0.0, 1.0]
    assert bool(x[2].isnan())


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((None, 7), {}, ValueError, r"k: expected 0 <= k <= 6, the number of elements, got 7"),
        ((None, -1), {}, ValueError, r"k: expected 0 <= k <= 6, the number of elements, got -1"),
        ((None, 4), {"by": "row"}, ValueError, r"k: expected 0 <= k <= 3, the number of elements of a row, got 4"),
        ((None, (4, 4)), {}, ValueError, r"k: expected \(n, m\) with 1 <= n < m <= 32, got \(4, 4\)"),
        ((None, (0, 4)), {}, ValueError, r"k: expected \(n, m\)"),
        ((None, (2, 33)), {}, ValueError, r"k: expected \(n, m\)"),
        ((None, (1, 2, 3)), {}, ValueError, r"k: expected a number or a pair \(n, m\), got 3 numbers"),
        ((None, 1), {"by": "column"}, ValueError, r"by: expected 'tensor', 'row', 'group' or 'within', got 'column'"),
        ((None, 1), {"by": "group"}, ValueError, r"layout: expected the groups' layout with by='group', got None"),
        ((None, 1), {"by": "group", "layout": GroupLayout(2, 2, 1)}, ValueError, r"layouts\[0\]: expected"),
        ((None, 4), {"by": "group", "layout": "input"}, ValueError, r"k: expected 0 <= k <= 3, the number of groups"),
        ((None, 3), {"by": "within", "layout": "input"}, ValueError, r"the number of elements of a group, got 3"),
        ((torch.ones(3, 2), 1), {}, ValueError, r"scores: expected the shape of x, \[2, 3\], got \[3, 2\]"),
        (
            (torch.ones(2, 3).int(), 1),
            {},
            TypeError,
            r"scores: expected float32, float64, bfloat16 or float16, got int32",
        ),
        ((torch.ones(2, 3), 1), {"scale": torch.ones(3)}, ValueError, r"scale: expected None where scores are given"),
        ((None, 1), {"scale": torch.ones(2)}, ValueError, r"scale: expected one number for each of the 3 columns"),
    ],
)
def test_errors(
    backend: Any, arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:

    def move(value: Any) -> Any:
        return value.to(backend.device) if isinstance(value, Tensor) else value

    x = torch.ones(2, 3, device=backend.device)
    with pytest.raises(error, match=message):
        sa.topk_threshold_(x, *map(move, arguments), **{name: move(value) for name, value in options.items()})
    assert torch.equal(x, torch.ones_like(x))


def test_x_of_other_kinds_is_refused(backend: Any) -> None:
    with pytest.raises(TypeError, match="x: expected float32, float64, bfloat16 or float16, got int64"):
        sa.topk_threshold_(torch.ones(5, dtype=torch.int64, device=backend.device), None, 1)
    with pytest.raises(ValueError, match="x: expected elements that do not share memory"):
        sa.topk_threshold_(torch.ones(1, device=backend.device).expand(5), None, 1)
    with pytest.raises(TypeError, match="x: expected a dense tensor"):
        sa.topk_threshold_(torch.ones(2, 2, device=backend.device).to_sparse(), None, 1)


def test_version_counts_the_write(backend: Any) -> None:
    x = torch.ones(8, device=backend.device)
    version = x._version
    sa.topk_threshold_(x, None, 3)
    assert x._version > version


@pytest.mark.parametrize(
    ("k", "by", "layout"),
    [
        ([3], "tensor", []),
        ([1], "row", []),
        ([2, 4], "tensor", []),
        ([2], "group", [4, 6, 1, 1]),
        ([2], "within", [4, 6, 1, 1]),
    ],
)
def test_opcheck(k: list[int], by: str, layout: list[int]) -> None:
    utils = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for scores, scale in (
        (None, None),
        (None, torch.ones(6)),
        (randn((4, 6), torch.float32, torch.device("cpu")), None),
    ):
        x = randn((4, 6), torch.float32, torch.device("cpu"), 3)
        arguments = (x, scores, k, by, layout, scale)
        torch.library.opcheck(torch.ops.sparse_accel.topk_threshold_.default, arguments, test_utils=utils)


def test_torch_compile_takes_it_whole() -> None:
    def project(x: Tensor) -> Tensor:
        y = x * 2
        return sa.topk_threshold_(y, None, 5) * y

    x = randn((4, 6), torch.float32, torch.device("cpu"))
    torch.testing.assert_close(torch.compile(project, fullgraph=True, backend="aot_eager")(x), project(x))


def test_devices_without_kernels_run_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    x = randn((4, 6), torch.float32, torch.device("cpu"))
    expected = [sa.topk_threshold_(x.clone(), None, k, by=by) for k, by in ((5, "tensor"), (2, "row"), ((2, 4), "row"))]
    monkeypatch.setattr(ops._library, "_on_device", lambda tensor: False)
    found = [sa.topk_threshold_(x.clone(), None, k, by=by) for k, by in ((5, "tensor"), (2, "row"), ((2, 4), "row"))]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    with pytest.raises(ValueError, match="NaN"):
        sa.topk_threshold_(torch.full((3,), torch.nan), None, 1)
    assert sa.topk_threshold_(torch.empty(4, 6, device="meta"), None, 5).is_meta


@pytest.mark.parametrize("k, by", [(3, "row"), (20, "tensor"), ((2, 4), "tensor")])
def test_scales_may_be_a_part_of_x(backend: Any, k: Any, by: str) -> None:
    x = randn((300, 64), torch.float32, backend.device).abs()
    expected = x.clone()
    kept = ops.topk_threshold_(expected, None, k, by=by, scale=x[0].clone())
    assert torch.equal(ops.topk_threshold_(x, None, k, by=by, scale=x[0]), kept)
    assert torch.equal(x, expected)
