"""group_topk: exactly k, ties to the lowest index, every backend against the plain twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DTYPES, randn

from sparse_accel import ops, reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(1,), (31, 0, 700), (3000, 5, 1030)])
def test_plain_twin(backend: Any, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    total = sum(sizes)
    for ties in (False, True):
        scores = [randn((size,), dtype, backend.device, i) for i, size in enumerate(sizes)]
        if ties:
            scores = [(score * 2).round() / 2 for score in scores]
        for k in {0, 1, total // 3, total // 2, total - 1, total}:
            found, expected = ops.group_topk(scores, k), reference.group_topk(scores, k)
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True)), (k, ties)
            assert sum(int(mask.sum()) for mask in found) == k


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([-torch.inf, -1.5, -0.0, 0.0, 1e-45, 2.0, torch.inf]), max_size=40), st.data())
def test_chosen_are_the_largest_and_the_first(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values)))
    mask = ops.group_topk(torch.tensor(values), k)
    assert isinstance(mask, torch.Tensor)
    by_rank = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert mask.nonzero().flatten().tolist() == sorted(by_rank[:k])


def test_ties_over_several_vectors_go_to_the_first(backend: Any) -> None:
    scores = [torch.zeros(70000, device=backend.device) for _ in range(2)]
    if backend.name == "cuda-emulated":
        scores = [score[:3000].clone() for score in scores]
    first, second = ops.group_topk(scores, scores[0].numel() + 7)
    assert first.all()
    assert second.nonzero().flatten().tolist() == list(range(7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_many_scores_with_one_digit(dtype: torch.dtype) -> None:
    # Several pieces, of whose scores so many begin alike that every digit is looked at; a vector of a few; none.
    scores = [randn((size,), dtype, "cpu", i) * 1e-3 + 1 for i, size in enumerate((70000, 5, 0, 40000))]
    for k in (1, 7001, 55002, 110004):
        found, expected = ops.group_topk(scores, k), reference.group_topk(scores, k)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True)), k


def test_many_vectors(backend: Any) -> None:
    scores = [randn((1 + i % 7,), torch.float32, backend.device, i) for i in range(40)]
    found, expected = ops.group_topk(scores, 51), reference.group_topk(scores, 51)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    apart = torch.ops.sparse_accel.group_topk(scores, 51)  # the dispatcher's results share no memory
    assert len({mask.untyped_storage().data_ptr() for mask in apart}) == len(scores)
    assert all(torch.equal(*pair) for pair in zip(found, apart, strict=True))
    found[0].fill_(True)
    assert torch.equal(found[1], expected[1])


def test_views_and_shapes(backend: Any) -> None:
    score = randn((6, 10), torch.float32, backend.device)
    assert torch.equal(ops.group_topk(score.t(), 9), ops.group_topk(score.t().contiguous(), 9))


def test_errors(backend: Any) -> None:
    score = torch.ones(5, device=backend.device)
    with pytest.raises(ValueError, match=r"k: expected 0 <= k <= 5, the number of scores, got 6"):
        ops.group_topk(score, 6)
    with pytest.raises(ValueError, match=r"k: expected 0 <= k <= 5, the number of scores, got -1"):
        ops.group_topk([score], -1)
    score[3] = torch.nan
    for k in (0, 2, 5):
        with pytest.raises(ValueError, match="scores: expected numbers that can be ordered, got NaN"):
            ops.group_topk(score, k)
    with pytest.raises(TypeError, match=r"scores\[0\]: expected float32"):
        ops.group_topk(torch.ones(5, dtype=torch.int64, device=backend.device), 1)


def test_no_scores(backend: Any) -> None:
    assert ops.group_topk([], 0) == []
    assert ops.group_topk(torch.zeros(0, device=backend.device), 0).shape == (0,)
