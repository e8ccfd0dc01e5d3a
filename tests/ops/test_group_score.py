"""group_score: every backend against the plain twin, and what a score has to satisfy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import BY, DTYPES, SUM_TOLERANCE, assert_near, randn, weights

from sparse_accel import ops, reference
from sparse_accel.groups import GroupLayout, group_layout

KINDS = ("l2", "l2sq", "l1", "sum", "amax")


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_twin(backend: Any, dtype: torch.dtype, kind: str, by: str) -> None:
    names, tensors, layouts = zip(*weights(dtype, backend.device, by), strict=True)
    found = ops.group_score(tensors, layouts, kind)
    expected = reference.group_score(tensors, layouts, kind)
    terms = reference.group_score(tensors, layouts, "l1") if kind == "sum" else expected  # signed sums cancel
    for name, score, wanted, term in zip(names, found, expected, terms, strict=True):
        assert_near(score, wanted, SUM_TOLERANCE[dtype], name, float(term.max()) if term.numel() else None)


@pytest.mark.parametrize("kind", KINDS)
def test_coupled_groups_are_one_group(backend: Any, kind: str) -> None:
    """Producer filters, a normalization's scale and consumer inputs of the same channels."""
    shapes = [(6, 4, 3, 3), (6,), (5, 6, 3, 3)]
    tensors = [randn(shape, torch.float32, backend.device, i) for i, shape in enumerate(shapes)]
    layouts = [GroupLayout(1, 6, 36), GroupLayout(1, 6, 1), GroupLayout(5, 6, 9)]
    together = torch.cat([tensors[0].flatten(1), tensors[1][:, None], tensors[2].transpose(0, 1).flatten(1)], 1)
    expected = {
        "l2": lambda x: x.square().sum(1).sqrt(),
        "l2sq": lambda x: x.square().sum(1),
        "l1": lambda x: x.abs().sum(1),
        "sum": lambda x: x.sum(1),
        "amax": lambda x: x.abs().amax(1),
    }[kind](together)
    assert_near(ops.group_score(tensors, layouts, kind, coupled=True), expected, 1e-6)


@pytest.mark.parametrize("shape", [(700, 600), (9000, 40), (3, 70000), (300, 40, 3, 3), (64, 5, 40, 40)])
@pytest.mark.parametrize("by", ["input", "output"])
@pytest.mark.parametrize("kind", ["l2", "amax"])
def test_large_tensors_in_parts(shape: tuple[int, ...], by: str, kind: str) -> None:
    tensor = randn(shape, torch.float64, torch.device("cpu"))
    layout = group_layout(tensor, by)
    (found,), (expected,) = ops.group_score([tensor], [layout], kind), reference.group_score([tensor], [layout], kind)
    assert_near(found, expected, 1e-13)


def test_bits_do_not_depend_on_threads() -> None:
    tensor = randn((3000, 200), torch.float32, torch.device("cpu"))
    threads = torch.get_num_threads()
    results = []
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        results.append(ops.group_score([tensor], [group_layout(tensor, "input")])[0])
    torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(0, 9), st.integers(0, 9), st.integers(0, 80)),
    st.sampled_from(KINDS),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_any_layout(sizes: tuple[int, int, int, int], kind: str, dtype: torch.dtype) -> None:
    blocks, outer, groups, inner = sizes
    tensor = randn((blocks, outer, groups, inner), dtype, torch.device("cpu"))
    layout = GroupLayout(outer, groups, inner, blocks)
    (found,), (expected,) = ops.group_score([tensor], [layout], kind), reference.group_score([tensor], [layout], kind)
    term = reference.group_score([tensor], [layout], "l1")[0] if kind == "sum" else expected
    assert_near(found, expected, SUM_TOLERANCE[dtype], "", float(term.max()) if term.numel() else None)


def test_nan_and_infinity_show(backend: Any) -> None:
    tensor = torch.ones(3, 70, device=backend.device)
    tensor[0, 5], tensor[1, 69] = torch.nan, torch.inf
    for kind in KINDS:
        (score,) = ops.group_score([tensor], [GroupLayout(1, 3, 70)], kind)
        assert score[0].isnan(), kind
        assert score[1].isinf(), kind
        assert score[2].isfinite(), kind


def test_no_tensors(backend: Any) -> None:
    assert ops.group_score([], []) == []


def test_errors(backend: Any) -> None:
    tensor = torch.ones(4, 6, device=backend.device)
    layout = GroupLayout(4, 6, 1)
    with pytest.raises(ValueError, match=r"kind: expected 'l2', .* got 'l3'"):
        ops.group_score([tensor], [layout], "l3")
    with pytest.raises(ValueError, match=r"layouts\[0\]: expected .* = 24, got 1 \* 4 \* 5 \* 1"):
        ops.group_score([tensor], [GroupLayout(4, 5, 1)])
    with pytest.raises(ValueError, match=r"layouts: expected one for each of 2 tensors, got 1"):
        ops.group_score([tensor, tensor], [layout])
    with pytest.raises(ValueError, match=r"tensors\[0\]: expected memory without gaps"):
        ops.group_score([tensor[:, ::2]], [GroupLayout(4, 3, 1)])
    with pytest.raises(TypeError, match=r"tensors\[1\]: expected the dtype of tensors\[0\], float32, got float64"):
        ops.group_score([tensor, tensor.double()], [layout, layout])
    with pytest.raises(TypeError, match=r"tensors\[0\]: expected float32, .* got int32"):
        ops.group_score([tensor.int()], [layout])
    with pytest.raises(ValueError, match=r"layouts\[1\]: expected 6 groups as in layouts\[0\]"):
        ops.group_score([tensor, tensor], [layout, GroupLayout(1, 4, 6)], coupled=True)
    with pytest.raises(ValueError, match=r"tensors: expected at least one coupled tensor"):
        ops.group_score([], [], coupled=True)


@pytest.mark.parametrize("size", [3 * 131072, 131072 + 1024, 131072 + 7])
@pytest.mark.parametrize("kind", ["l2", "sum", "amax"])
def test_one_long_group_is_shared_by_threads(size, kind):
    x = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    layouts = [GroupLayout(1, 1, size)]
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(ops.group_score([x], layouts, kind)[0])
            y = x.clone()
            ops.prox_([y], layouts, [0.25])
            found.append(y)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(found, found[2:], strict=False))
    torch.testing.assert_close(found[0], reference.group_score([x], layouts, kind)[0])
    reference.prox_([x], layouts, [0.25])
    torch.testing.assert_close(found[1], x)
