"""i-SpaSP on sums: the authors' sets, the paper's loop written out, properties, refusals; every backend."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ispasp_cases import GOLDEN, golden, paper_loop
from torch import Tensor, nn

from sparse_accel.prune import ISpaSPSelection, batchnorm_affine, ispasp_select


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def to(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    return [tensor.to(device) for tensor in tensors]


def same_sets(found: ISpaSPSelection, expected: list[Tensor]) -> None:
    """The set of every iteration; those after the end of the loop repeat its last."""
    history = [*found.history, *[found.kept] * len(expected)][: len(expected)]
    assert [kept.tolist() for kept in history] == [kept.tolist() for kept in expected]
    assert len(found.importance) == len(found.history) == len(found.residuals) - 1


@pytest.mark.parametrize("name", GOLDEN)
def test_authors_sets(backend: Any, name: str) -> None:
    hidden, arrays, options = golden(name)
    options = {key: value.to(backend.device) if isinstance(value, Tensor) else value for key, value in options.items()}
    sums, weight = to(backend.device, hidden.sum(0), arrays["weight"])
    found = ispasp_select(sums, weight, float(arrays["ratio"]), len(arrays["selected"]), **options)
    same_sets(found, list(arrays["selected"]))


def check_against_loop(hidden: Tensor, consumer: Any, keep: int, weight: Tensor, **options: Any) -> ISpaSPSelection:
    sets, scores, residuals = paper_loop(hidden, consumer, keep, 6)
    found = ispasp_select(hidden.sum(0), weight, keep, 6, **options)
    same_sets(found, sets)
    size = max(float(score.abs().max()) for score in scores)
    for mine, score in zip(found.importance, scores, strict=False):
        torch.testing.assert_close(mine, score, rtol=1e-10, atol=1e-10 * size)
    expected = torch.stack([residual.sum(0).square().sum() for residual in residuals])[: len(found.residuals)]
    torch.testing.assert_close(found.residuals, expected, rtol=1e-9, atol=1e-9 * float(expected.max()))
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 5), st.integers(0, 10**6), st.data())
def test_dense_consumer(units: int, outputs: int, samples: int, seed: int, data: st.DataObject) -> None:
    hidden, weight = randn(samples, units, seed=seed), randn(outputs, units, seed=seed + 1)
    keep = data.draw(st.integers(1, units))
    check_against_loop(hidden, lambda x: x @ weight.T, keep, weight)


@pytest.mark.parametrize(
    "shape, kernel, options",
    [
        ((6, 11), 3, {"padding": 1}),
        ((6, 11), 4, {"stride": 3, "padding": 2, "dilation": 2, "groups": 2}),
        ((6, 7, 5), (3, 2), {"stride": (2, 1), "padding": (1, 0)}),
        ((6, 7, 5), 3, {"padding": "same", "dilation": 2, "groups": 3}),
        ((6, 7, 5), 3, {"padding": 1, "groups": 6}),
        ((6, 7, 5), 1, {"stride": 2}),
        ((6, 7, 5), 3, {"padding": (2, 1), "padding_mode": "reflect"}),
        ((6, 7, 5), 3, {"padding": 1, "padding_mode": "circular"}),
        ((4, 3, 4, 5), 3, {"padding": 1, "stride": 2}),
    ],
)
@pytest.mark.parametrize("norm", [False, True])
def test_convolutions(shape: tuple[int, ...], kernel: Any, options: dict[str, Any], norm: bool) -> None:
    for seed in range(3):
        hidden = randn(5, *shape, seed=seed).relu()
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 2]
        conv = kind(shape[0], 12, kernel, bias=norm, **options).double().requires_grad_(False)
        more: dict[str, Any] = {}
        consumer: nn.Module = conv
        if norm:
            after = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(shape) - 2](12).double().eval()
            for i, tensor in enumerate([*after.parameters(), after.running_mean]):
                tensor.data = randn(12, seed=10 * seed + i)
            after.running_var = randn(12, seed=seed).square()
            scale, shift = batchnorm_affine(after, conv.bias)
            more = {"scale": scale, "shift": shift, "count": 5}
            consumer = nn.Sequential(conv, after).requires_grad_(False)
        check_against_loop(hidden, consumer, 2, conv.weight, **options, **more)


def test_units_of_several_columns() -> None:
    """Heads, and channels before a flatten: a convolution whose kernel is the whole map."""
    hidden, weight = randn(7, 6, 4, seed=1), randn(3, 24, seed=2)
    found = check_against_loop(hidden, lambda x: x.flatten(1) @ weight.T, 2, weight)
    conv = ispasp_select(hidden.sum(0), weight.view(3, 6, 4), 2)
    same_sets(found, list(conv.history))


def test_half_or_more_is_top_activation() -> None:
    hidden, weight = randn(20, 10, seed=3), randn(4, 10, seed=4)
    for keep in (5, 8, 10):
        top = hidden.sum(0).topk(keep).indices.sort().values
        assert ispasp_select(hidden.sum(0), weight, keep).kept.tolist() == top.tolist()


def test_ties_go_to_the_lowest_index(backend: Any) -> None:
    sums, weight = to(backend.device, torch.ones(9), torch.ones(2, 9))
    found = ispasp_select(sums, weight, 2)
    assert found.kept.tolist() == [0, 1]
    assert len(found.history) == 2


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(0, 10**6), st.data())
def test_properties(units: int, seed: int, data: st.DataObject) -> None:
    sums, weight = randn(units, seed=seed), randn(5, units, seed=seed + 1)
    keep = data.draw(st.integers(1, units))
    found = ispasp_select(sums, weight, keep, 50)
    assert all(len(kept) == keep for kept in found.history)
    held = [float(sums[kept].sum()) for kept in found.history]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(held))  # the sum over S never decreases
    assert torch.equal(found.history[-1], found.history[-2] if len(found.history) > 1 else found.kept)
    # Scales of the data and of the consumer do not matter, nor does the order of the units.
    assert torch.equal(ispasp_select(3.0 * sums, weight, keep, 50).kept, found.kept)
    assert torch.equal(ispasp_select(sums, -4.0 * weight, keep, 50).kept, found.kept)
    order = torch.randperm(units, generator=torch.Generator().manual_seed(seed))
    permuted = ispasp_select(sums[order], weight[:, order], keep, 50).kept
    assert order[permuted].sort().values.tolist() == found.kept.tolist()


def test_more_iterations_change_nothing_after_a_repeat() -> None:
    hidden, arrays, options = golden("basicblock_r025")
    sums = hidden.sum(0)
    found = ispasp_select(sums, arrays["weight"], 4, 1000, **options)
    assert len(found.history) < 10
    assert torch.equal(found.history[-1], found.history[-2])
    one = ispasp_select(sums, arrays["weight"], 4, 1, **options)
    assert torch.equal(one.kept, found.history[0])
    assert one.residuals[1] == found.residuals[1]


def test_start_goes_on_where_a_run_ended() -> None:
    """One iteration at a time is the loop; with other sums it goes on with fresh data."""
    hidden, arrays, options = golden("basicblock_r025")
    kept, sets = None, []
    for _ in range(4):
        one = ispasp_select(hidden.sum(0), arrays["weight"], 4, 1, start=kept, **options)
        kept = one.kept
        sets.append(kept)
    same_sets(ispasp_select(hidden.sum(0), arrays["weight"], 4, 4, **options), sets)
    again = ispasp_select(hidden.sum(0), arrays["weight"], 4, 20, start=kept, **options)
    assert len(again.history) == 1
    assert torch.equal(again.kept, kept)
    fresh = ispasp_select(hidden[:12].sum(0), arrays["weight"], 4, 1, start=kept, **options | {"count": 12})
    assert len(fresh.kept) == 4


def test_balance_keeps_as_many_in_each_set() -> None:
    sums, weight = randn(12, seed=5), randn(4, 12, seed=6)
    neighbours = ispasp_select(sums, weight, 6, balance=3)
    assert torch.bincount(neighbours.kept // 4).tolist() == [2, 2, 2]
    sets = torch.tensor([0, 1, 2] * 4)
    mixed = ispasp_select(sums, weight, 0.5, balance=sets)
    assert torch.bincount(sets[mixed.kept]).tolist() == [2, 2, 2]
    assert torch.equal(ispasp_select(sums, weight, 5, balance=1).kept, ispasp_select(sums, weight, 5).kept)


def test_shares_are_rounded_down() -> None:
    sums, weight = randn(100, seed=7), randn(4, 100, seed=8)
    for keep, number in ((0.29, 29), (0.296, 29), (0.999, 99), (0.001, 1)):
        assert len(ispasp_select(sums, weight, keep).kept) == number


def test_half_precision_and_views() -> None:
    sums, weight = randn(6, 5, 5, seed=9), randn(4, 6, 3, 3, seed=10)
    plain = ispasp_select(sums, weight, 2, padding=1)
    view = ispasp_select(sums.transpose(1, 2).contiguous().transpose(1, 2), weight.mT.contiguous().mT, 2, padding=1)
    assert torch.equal(view.kept, plain.kept)
    half = ispasp_select(sums.bfloat16(), weight.bfloat16(), 2, padding=1)
    assert half.importance[0].dtype == half.residuals.dtype == torch.float64


@pytest.mark.parametrize(
    "change, message",
    [
        ({"keep": 0}, r"keep: expected 1 to 6, the number of units, got 0"),
        ({"keep": 7}, r"keep: expected 1 to 6, the number of units, got 7"),
        ({"keep": 1.0}, r"keep: expected an integer, or a share in \(0, 1\), got 1.0"),
        ({"iterations": 0}, r"iterations: expected at least 1, got 0"),
        ({"count": 0}, r"count: expected at least 1, got 0"),
        ({"hidden_sum": torch.tensor(1.0)}, r"hidden_sum: expected \[C, ...\], not empty, got \(\)"),
        ({"hidden_sum": torch.zeros(0)}, r"hidden_sum: expected \[C, ...\], not empty, got \(0,\)"),
        ({"hidden_sum": torch.full((6,), torch.nan)}, r"hidden_sum: expected finite numbers, got NaN or inf"),
        ({"weight": torch.full((2, 6), torch.inf)}, r"weight: expected finite numbers, got NaN or inf"),
        ({"weight": torch.ones(2, 5)}, r"weight: expected \[d, 6\], one column for each element of hidden_sum, got"),
        ({"weight": torch.ones(2, 6, 3)}, r"with hidden_sum \[C, \*size\], got \(2, 6, 3\) with \(6,\)"),
        ({"scale": torch.ones(3)}, r"scale: expected \[2\], one number per output, got \(3,\)"),
        ({"shift": torch.ones(2, 1)}, r"shift: expected \[2\], one number per output, got \(2, 1\)"),
        ({"start": torch.tensor([0, 6])}, r"start: expected int64 unit numbers in \[0, 6\), got torch.int64, \[0, 6\]"),
        ({"start": torch.tensor([0.0])}, r"start: expected int64 unit numbers in \[0, 6\), got torch.float32"),
        ({"balance": 4}, r"balance: expected a divisor of 6, the number of units, got 4"),
        ({"balance": 4 * [0]}, r"balance: expected int64 \[6\]"),
        ({"balance": torch.tensor([0, 0, 0, 0, 1, 1])}, r"balance: expected sets of equal size, numbered from 0, got"),
        ({"balance": 2, "keep": 3}, r"keep: expected a multiple of 2, the number of sets kept alike, got 3"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    arguments = {"hidden_sum": torch.ones(6), "weight": torch.ones(2, 6), "keep": 2} | change
    if isinstance(arguments.get("balance"), list):
        arguments["balance"] = torch.tensor(arguments["balance"])
    with pytest.raises(ValueError, match=message):
        ispasp_select(**arguments)


def test_groups_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"weight: expected \[d, 6 / groups, ...\] with d and 6 divisible by"):
        ispasp_select(torch.ones(6, 4, 4), torch.ones(4, 3, 3, 3), 2, groups=4)


def test_batchnorm_affine() -> None:
    norm = nn.BatchNorm2d(3).double()
    with pytest.raises(ValueError, match=r"norm: expected a BatchNorm in eval mode .* got train mode"):
        batchnorm_affine(norm)
    with pytest.raises(ValueError, match=r"got no running statistics"):
        batchnorm_affine(nn.BatchNorm2d(3, track_running_stats=False).eval())
    norm.running_mean, norm.running_var = randn(3), randn(3).square()
    norm.weight.data, norm.bias.data = randn(3, seed=1), randn(3, seed=2)
    x, bias = randn(2, 3, 4, 4, seed=3), randn(3, seed=4)
    scale, shift = batchnorm_affine(norm.eval(), bias)
    expected = norm(x + bias.view(3, 1, 1))
    torch.testing.assert_close(x * scale.view(3, 1, 1) + shift.view(3, 1, 1), expected)
    plain = nn.BatchNorm2d(3, affine=False).double().eval()
    assert torch.allclose(batchnorm_affine(plain)[1], torch.zeros(3, dtype=torch.float64))


def test_linear_in_float32_against_autograd() -> None:
    """A float32 pass over the data, as a user makes it, finds the sets of the loop in float64."""
    hidden, arrays, options = golden("basicblock_r04")
    sums = hidden.float().sum(0)
    weight = arrays["weight"].float()
    found = ispasp_select(sums, weight, 6, 6, **options)
    same_sets(found, list(arrays["selected"]))
