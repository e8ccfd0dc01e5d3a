"""topk_threshold_: exactly k, ties to the lowest index, values and mask alike; every backend against the plain twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DTYPES, memory_orders, randn
from torch import Tensor

import sparse_accel as sa
from sparse_accel import reference
from sparse_accel.groups import GroupLayout, group_layout

PATTERNS = [(1, 2), (2, 4), (3, 4), (4, 8), (7, 16), (15, 16), (1, 3), (5, 7), (17, 31), (16, 32), (31, 32)]


def check(
    x: Tensor,
    scores: Tensor | None,
    k: int | tuple[int, int],
    by: str = "tensor",
    scale: Tensor | None = None,
    layout: GroupLayout | None = None,
) -> Tensor:
    """Values and mask are those of the twin, and fit each other."""
    found, expected = x.clone(), x.clone()
    mask = sa.topk_threshold_(found, scores, k, by=by, scale=scale, layout=layout)
    numbers = [k] if isinstance(k, int) else list(k)
    twin = reference.topk_threshold_(expected, scores, numbers, by, list(layout or []), scale)
    what = (x.shape, x.dtype, k, by, scale is not None)
    assert torch.equal(mask, twin), what
    assert torch.equal(found, expected), what
    assert torch.equal(found, torch.where(mask, x, 0)), what
    assert mask.stride() == torch.empty_like(x).stride(), what
    return mask


def numbers(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int = 0) -> list[Tensor]:
    """Without ties, with some, and with hardly anything else."""
    x = randn(shape, dtype, device, seed)
    few = torch.zeros_like(x)
    few.view(-1)[::7] = -1
    return [x, (x * 2).round() / 2, few]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (64,), (3, 65), (37, 53), (9, 700), (2, 3, 4, 5), (3, 9000)])
def test_plain_twin(backend: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    scale = randn(shape[-1:], torch.float32, backend.device, 1).abs()
    rows = shape[0] if len(shape) > 1 else 1
    for x in numbers(shape, dtype, backend.device):
        for by, most in (("tensor", x.numel()), ("row", x.numel() // rows)):
            for k in {0, 1, most // 3, most // 2, most - 1, most}:
                assert int(check(x, None, k, by).sum()) == k * (rows if by == "row" else 1)
            check(x, None, most // 2, by, scale)
            check(x, x, most // 2, by)


@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_other_dtypes(backend: Any, x_dtype: torch.dtype, dtype: torch.dtype) -> None:
    x = randn((30, 70), x_dtype, backend.device)
    for scores in numbers((30, 70), dtype, backend.device, 1):
        for k, by in ((700, "tensor"), (33, "row"), ((2, 4), "tensor"), ((3, 5), "row")):
            check(x, scores, k, by)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_patterns(backend: Any, pattern: tuple[int, int], dtype: torch.dtype) -> None:
    n, m = pattern
    for columns in (m, 6 * m, 64 * m // 2, 5 * m + m // 2, m - 1):
        scale = randn((columns,), torch.float32, backend.device, 1).abs()
        for x in numbers((5, columns), dtype, backend.device):
            mask = check(x, None, pattern)
            whole = mask[:, : columns // m * m].reshape(5, -1, m).sum(-1)
            assert bool((whole == n).all())
            assert bool((mask[:, columns // m * m :].sum(-1) == min(n, columns % m)).all())
            check(x, None, pattern, scale=scale)
            check(x, x, pattern)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([-torch.inf, -1.5, -0.0, 0.0, 1e-45, 2.0, torch.inf]), max_size=140), st.data())
def test_kept_are_the_largest_and_the_first(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values)))
    x = torch.arange(1.0, len(values) + 1)
    mask = sa.topk_threshold_(x, torch.tensor(values), k)
    by_rank = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert mask.nonzero().flatten().tolist() == sorted(by_rank[:k])
    assert x.tolist() == [i + 1.0 if i in by_rank[:k] else 0.0 for i in range(len(values))]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 31), st.data())
def test_any_pattern(n: int, data: st.DataObject) -> None:
    m = data.draw(st.integers(n + 1, 32))
    columns = data.draw(st.integers(1, 3 * m))
    x = torch.tensor(data.draw(st.lists(st.integers(-3, 3), min_size=2 * columns, max_size=2 * columns))).float()
    check(x.view(2, columns), None, (n, m))


@pytest.mark.parametrize("kind", ["normal", "sorted", "reversed", "heavy tails", "two values", "periodic", "edges"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_large(kind: str, dtype: torch.dtype) -> None:
    """Sizes that take the sampled pass over memory, on numbers that mislead a sample."""
    size = 400_003
    x = randn((size,), torch.float64, torch.device("cpu"))
    x = {
        "normal": x,
        "sorted": x.sort().values,
        "reversed": x.sort(descending=True).values,
        "heavy tails": (x * 8).exp().clamp(max=1e4),
        "two values": (x > 0.3).double(),
        "periodic": torch.arange(size).remainder(147).double(),
        "edges": torch.where(x > 3, torch.inf, torch.where(x < -3, -torch.inf, x.clamp(-1, 1))),
    }[kind].to(dtype)
    for k in (1, 5, size // 100, size // 2, size - 300, size - 1):
        check(torch.ones(size), x, k)
        check(torch.ones(3, size), torch.stack([x, x.flip(0), x]), k, "row") if dtype == torch.float32 else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_that_are_half_zero(dtype: torch.dtype) -> None:
    """The threshold lies at zero or next to it, where a sample has nothing to say: what pruning twice looks like."""
    for seed in range(6):
        x = randn((150, 1500), dtype, torch.device("cpu"), seed)
        sa.topk_threshold_(x, None, 750, by="row")
        for k in (700, 749, 750, 751, 800):
            check(x, None, k, "row")
        check(x, None, 150 * 750 + 1)


@pytest.mark.parametrize("flush", [False, True])
def test_rows_of_uneven_numbers(flush: bool) -> None:
    device = torch.device("cpu")
    x = randn((1, 2500), torch.float32, device)
    powers = torch.arange(2500.0).remainder(250) - 125
    rows = [
        (x * 12).exp().clamp(max=1e30),
        torch.exp2(powers)[None],
        torch.where(powers > 100, torch.exp2(powers), powers * 1e-42)[None],
        torch.cat([x[:, :2000] * 1e-30 + 1, x[:, 2000:] * 1e30], 1),
        (x * 1e-45).abs(),
    ]
    torch.set_flush_denormal(flush)
    try:
        for row in rows:
            for k in (1, 300, 1250, 2000, 2499):
                mask = sa.topk_threshold_(torch.ones(1, 2500), row, k, by="row")
                assert int(mask.sum()) == k
                assert float(row[mask].min()) >= float(row[~mask].max())
                if not flush:
                    check(torch.ones(1, 2500), row, k, "row")
    finally:
        torch.set_flush_denormal(False)


def test_masks_larger_than_the_cache() -> None:
    x = randn((4100, 1025), torch.float32, torch.device("cpu"))
    for k, by in ((2_000_000, "tensor"), (300, "row"), ((2, 4), "row"), ((3, 5), "row")):
        check(x, None, k, by)
    check(x.bfloat16(), x, (4, 8))


def test_threads_give_the_same() -> None:
    x = (randn((500, 1001), torch.float32, torch.device("cpu")) * 50).round()
    scale = randn((1001,), torch.float32, torch.device("cpu"), 1).abs()
    masks = []
    threads = torch.get_num_threads()
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        calls: list[tuple[Any, str, Any]] = [
            (250_250, "tensor", None), (77, "row", None), ((2, 4), "row", None), (250_250, "tensor", scale)
        ]  # fmt: skip
        masks.append([sa.topk_threshold_(x.clone(), None, k, by=by, scale=s) for k, by, s in calls])
    torch.set_num_threads(threads)
    for other in masks[1:]:
        assert all(torch.equal(*pair) for pair in zip(other, masks[0], strict=True))


@pytest.mark.parametrize("by", ["input", "output", "kernel"])
@pytest.mark.parametrize("shape", [(12, 10), (8, 6, 3, 3), (6, 40, 1, 1)])
def test_groups(backend: Any, by: str, shape: tuple[int, ...]) -> None:
    scale = randn(shape[-1:], torch.float32, backend.device, 5).abs()
    for x in memory_orders(randn(shape, torch.float32, backend.device)).values():
        groups = group_layout(x, by).num_groups
        for k in (0, groups // 3, groups):
            y = x.clone()
            mask = sa.topk_threshold_(y, None, k, by="group", layout=by)
            assert torch.equal(y, x * mask)
            dims = {"input": (0, 2, 3), "output": (1, 2, 3), "kernel": (2, 3)}[by]
            square, flags = (t.view(*shape, *[1] * (4 - len(shape))) for t in (x.square(), mask))
            kept, norms = flags.float().mean(dims).flatten(), square.sum(dims).flatten()
            assert sorted(set(kept.tolist())) in ([0.0], [1.0], [0.0, 1.0])
            assert int(kept.sum()) == k
            if 0 < k < groups:
                assert float(norms[kept == 1].min()) >= float(norms[kept == 0].max()) * (1 - 1e-6)
        if x.is_contiguous():
            layout = group_layout(x, by)
            for values in numbers(shape, torch.float32, backend.device):
                check(x, values, groups // 2, "group", layout=layout)
                check(values, None, layout.group_size // 2, "within", layout=layout)
                check(values, None, layout.group_size // 2, "within", layout=layout, scale=scale)
            check(x, None, groups // 2, "group", layout=layout, scale=scale)
            check(x, randn((groups,), torch.float16, backend.device), groups // 2, "group", layout=layout)


@pytest.mark.parametrize(
    ("by", "k", "dims"), [("input", 20, (0, 2, 3)), ("output", 17, (1, 2, 3)), ("kernel", 4, (2, 3))]
)
def test_within_groups_in_any_memory_order(backend: Any, by: str, k: int, dims: tuple[int, ...]) -> None:
    x = (randn((8, 6, 3, 3), torch.float32, backend.device) * 2).round()
    expected = x.clone()
    mask = sa.topk_threshold_(expected, None, k, by="within", layout=by)
    assert set(mask.sum(dims).flatten().tolist()) == {k}
    for other in memory_orders(x).values():
        y = other.clone()
        found = sa.topk_threshold_(y, None, k, by="within", layout=by)
        assert torch.equal(found, mask)
        assert torch.equal(y, expected)


def test_views_give_the_same(backend: Any) -> None:
    wide = (randn((12, 40, 3, 3), torch.float32, backend.device) * 4).round()
    views = [wide[:, ::2], wide.transpose(0, 1), wide.to(memory_format=torch.channels_last), wide[3], wide[0, 0, 0, 0]]
    for view in views:
        scale = randn((view.shape[-1] if view.dim() else 1,), torch.float32, backend.device).abs()
        row = view[0].numel() if view.dim() > 1 else view.numel()
        for k, by in ((view.numel() // 2, "tensor"), (row // 2, "row"), ((1, 2), "row")):
            base = wide.clone()
            x = (
                base.as_strided(view.shape, view.stride(), view.storage_offset())
                if view._base is wide
                else view.clone()
            )
            before, expected = base.clone(), x.clone(memory_format=torch.contiguous_format)
            mask = sa.topk_threshold_(x, None, k, by=by, scale=scale if view.dim() else None)
            flat = sa.topk_threshold_(expected, None, k, by=by, scale=scale if view.dim() else None)
            assert torch.equal(mask, flat)
            assert torch.equal(x, expected)
            if view._base is wide:  # what the view leaves out has not changed
                inside = torch.zeros_like(base, dtype=torch.bool)
                inside.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(True)
                assert torch.equal(base[~inside], before[~inside])


def test_scores_that_share_memory_with_x(backend: Any) -> None:
    x = randn((40, 40), torch.float32, backend.device)
    for scores in (lambda t: t, lambda t: t.t(), lambda t: t.flip(0)):
        y = x.clone()
        mask = sa.topk_threshold_(y, scores(y), 700)
        assert torch.equal(mask, sa.topk_threshold_(x.clone(), scores(x).clone(), 700))
    memory = randn((100,), torch.float32, backend.device)
    expected = sa.topk_threshold_(memory[1:].clone(), memory[:-1].clone(), 30)
    assert torch.equal(sa.topk_threshold_(memory[1:], memory[:-1], 30), expected)


def test_no_elements(backend: Any) -> None:
    for shape in ((0,), (0, 5), (5, 0)):
        x = torch.zeros(shape, device=backend.device)
        for k, by in ((0, "tensor"), (0, "row"), ((2, 4), "tensor")):
            assert sa.topk_threshold_(x, None, k, by=by).shape == shape
    assert sa.topk_threshold_(torch.zeros(0, 5, device=backend.device), None, 3, by="row").shape == (0, 5)
