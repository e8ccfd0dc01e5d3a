"""Sizes at which a launch has a second chunk of rows, several pieces of a group, or more than 2^31 elements; and memory
that starts past a 16-byte boundary. The same tests run on the CPU, on shapes of its own scale."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import sparse_accel as sa
from sparse_accel import ops, reference
from sparse_accel.groups import GroupLayout, group_layout

SHAPES = {
    "cpu": [(64, 300), (900, 40), (3, 7000), (30, 40, 3, 3)],
    "cuda": [(4096, 4096), (9000, 40), (3, 70000), (300, 40, 3, 3), (2, 3, 2_000_003)],
}
BY = ("input", "output", "element")
DTYPES = (torch.float32, torch.bfloat16)
# Relative to the largest value. Sums of up to 16M float32 terms, in two different orders; one rounding of bfloat16.
SUMS = 2e-5
VALUES = {torch.float32: 2e-5, torch.bfloat16: 8e-3}

everywhere = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 0, shift: int = 0) -> Tensor:
    """Normal numbers; `shift`: elements that the memory has before the first."""
    generator = torch.Generator(device).manual_seed(seed)
    values = torch.randn(shape, generator=generator, device=device)
    memory = torch.empty(values.numel() + shift, dtype=dtype, device=device)
    return memory[shift:].view(shape).copy_(values)


def shapes(device: str) -> Iterator[tuple[tuple[int, ...], int]]:
    for shape in SHAPES[device]:
        for shift in (0, 1):
            yield shape, shift


def near(found: Tensor, expected: Tensor, tolerance: float, what: object) -> None:
    assert found.shape == expected.shape, what
    assert bool(found.isfinite().all()), what
    scale = float(expected.abs().max())
    assert float((found.double() - expected.double()).abs().max()) <= tolerance * scale, what


@everywhere
@pytest.mark.parametrize("kind", ["l2", "l1", "amax"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_group_score(device: str, dtype: torch.dtype, kind: str) -> None:
    for shape, shift in shapes(device):
        x = draw(shape, dtype, device, shift=shift)
        for by in ("input", "output", "tensor"):
            layout = GroupLayout(1, 1, x.numel()) if by == "tensor" else group_layout(x, by)
            (found,) = ops.group_score([x], [layout], kind)
            (expected,) = reference.group_score([x.double()], [layout], kind)
            near(found, expected, SUMS, (shape, shift, by))


@everywhere
@pytest.mark.parametrize("prox", ["soft", "hard"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_prox(device: str, dtype: torch.dtype, prox: str) -> None:
    for shape, shift in shapes(device):
        for by in BY:
            x = draw(shape, dtype, device, shift=shift)
            if prox == "hard":  # eighths: no squared norm within rounding of the threshold, of millions
                x.copy_((x.float() * 8).round() / 8)
            expected, layout = x.double(), group_layout(x, by)
            value = ops.prox_([x], [layout], [0.41], prox=prox, return_value=True)
            wanted = reference.prox_([expected], [layout], [0.41], prox=prox, return_value=True)
            near(x, expected, VALUES[dtype], (shape, shift, by))
            assert value is not None
            assert wanted is not None
            # of bfloat16 both sum the penalty before the result is rounded
            near(value, wanted, SUMS, (shape, shift, by))


@everywhere
@pytest.mark.parametrize("dtype", DTYPES)
def test_rmda_step(device: str, dtype: torch.dtype) -> None:
    for shape, shift in shapes(device):
        for by in BY:
            state = [draw(shape, dtype, device, seed, shift) for seed in (0, 1)]
            state += [draw(shape, torch.float32, device, seed, shift) for seed in (2, 3)]
            plain = [t.double() for t in state]
            layout = group_layout(state[0], by)
            for step, tensors in ((ops.rmda_step_, state), (reference.rmda_step_, plain)):
                clocks = [[torch.full((), 3.0, device=device)], [torch.full((), 0.75, device=device).double()]]
                options: dict[str, Any] = {"prox": "soft", "strengths": [0.2], "lr": 0.25, "momentum": 0.3}
                step(*([t] for t in tensors), *clocks, [layout], **options)
                assert [float(clock[0]) for clock in clocks] == pytest.approx([4.0, 0.75 + 0.25 * 2])
            near(state[0], plain[0], VALUES[dtype], ("weight", shape, shift, by))
            near(state[2], plain[2], VALUES[torch.float32], ("point", shape, shift, by))
            assert torch.equal(state[1].double(), plain[1])
            assert torch.equal(state[3].double(), plain[3])


def kept(scores: Tensor, k: int) -> Tensor:
    """The mask of the k largest of each row; of equal ones the first."""
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., :k]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)


@everywhere
def test_topk(device: str) -> None:
    for shape, shift in shapes(device):
        x = draw(shape, torch.float32, device, shift=shift)
        scores = (draw(shape, torch.float32, device, 1, shift) * 8).round()  # ties
        flat, rows = scores.flatten(), scores.flatten(1)
        even = scores[..., : shape[-1] // 4 * 4].reshape(-1, 4)
        for k, by, mask in (
            (x.numel() // 3, "tensor", kept(flat, x.numel() // 3).view(shape)),
            (rows.shape[1] // 2, "row", kept(rows, rows.shape[1] // 2).view(shape)),
            ((2, 4), "row", kept(even, 2)),
        ):
            y = x.clone()
            found = sa.topk_threshold_(y, scores, k, by=by)
            assert torch.equal(y, x * found), (shape, shift, by)
            found = found[..., : shape[-1] // 4 * 4].reshape(-1, 4) if isinstance(k, tuple) else found
            assert torch.equal(found, mask), (shape, shift, by)
        parts = [flat[: x.numel() // 5], flat[x.numel() // 5 :]]
        masks = ops.group_topk(parts, x.numel() // 3)
        assert torch.equal(torch.cat(masks), kept(flat, x.numel() // 3)), (shape, shift)


# ---- more than 2^31 elements: copies of one small matrix, so that the result is copies of one small result.

COLUMNS = 4096
PERIOD = 64
huge = pytest.mark.parametrize(
    "device, periods",
    [("cpu", 3), pytest.param("cuda", 2**31 // (COLUMNS * PERIOD) + 1, marks=[pytest.mark.cuda, pytest.mark.large])],
)


def repeated(dtype: torch.dtype, device: str, periods: int, seed: int = 0) -> Tensor:
    small = draw((PERIOD, COLUMNS), dtype, device, seed)
    return torch.empty(periods, PERIOD, COLUMNS, dtype=dtype, device=device).copy_(small).view(-1, COLUMNS)


def first_of(x: Tensor, what: object) -> Tensor:
    """The first copy, of which all others are copies."""
    copies = x.view(-1, PERIOD, COLUMNS)
    assert all(bool((part == copies[0]).all()) for part in copies.split(256)), what
    return copies[0]


@huge
def test_scores_of_more_than_31_bits(device: str, periods: int) -> None:
    x = repeated(torch.bfloat16, device, periods)
    small = x[:PERIOD].double()
    (rows,) = ops.group_score([x], [group_layout(x, "output")])
    assert bool((rows.view(-1, PERIOD) == rows[:PERIOD]).all())
    near(rows[:PERIOD], small.norm(dim=1), SUMS, "rows")
    (columns,) = ops.group_score([x], [group_layout(x, "input")])
    near(columns, small.norm(dim=0) * periods**0.5, SUMS, "columns")
    (whole,) = ops.group_score([x], [GroupLayout(1, 1, x.numel())], "l1")
    near(whole, small.abs().sum()[None] * periods, SUMS, "whole")


@huge
@pytest.mark.parametrize("by", BY)
def test_prox_of_more_than_31_bits(device: str, periods: int, by: str) -> None:
    x = repeated(torch.bfloat16, device, periods)
    small, size = x[:PERIOD].double(), {"input": len(x), "output": COLUMNS, "element": 1}[by]
    norms = {
        "input": small.norm(dim=0, keepdim=True) * periods**0.5,
        "output": small.norm(dim=1, keepdim=True),
        "element": small.abs(),
    }[by]
    ops.prox_([x], [group_layout(x, by)], [0.4])
    expected = small * (1 - 0.4 * size**0.5 / norms).clamp(min=0)
    near(first_of(x, by), expected, VALUES[torch.bfloat16], by)


@huge
@pytest.mark.parametrize("by", ["input", "output"])
def test_rmda_step_of_more_than_31_bits(device: str, periods: int, by: str) -> None:
    state = [repeated(torch.bfloat16, device, periods, seed) for seed in (0, 1)]
    state += [repeated(torch.float32, device, periods, seed) for seed in (2, 3)]
    w, grad, point, anchor = (t[:PERIOD].double() for t in state)
    clocks = [[torch.zeros((), device=device)], [torch.zeros((), dtype=torch.float64, device=device)]]
    layout = group_layout(state[0], by)
    options: dict[str, Any] = {"prox": "soft", "strengths": [0.4], "lr": 0.25, "momentum": 0.3}
    ops.rmda_step_(*([t] for t in state), *clocks, [layout], **options)
    point = anchor - 0.25 * grad  # the first step: nothing is left of the point before
    dim, size = (0, len(state[0])) if by == "input" else (1, COLUMNS)
    norms = point.norm(dim=dim, keepdim=True) * (periods**0.5 if by == "input" else 1)
    shrunk = point * (1 - 0.25 * 0.4 * size**0.5 / norms).clamp(min=0)
    near(first_of(state[2], "point"), point, VALUES[torch.float32], "point")
    near(first_of(state[0], "weight"), 0.7 * w + 0.3 * shrunk, VALUES[torch.bfloat16], "weight")


@pytest.mark.cuda
@pytest.mark.large
def test_topk_refuses_more_than_31_bits() -> None:
    x = torch.ones(2**31, dtype=torch.bfloat16, device="cuda")
    before = x[:4].clone()
    with pytest.raises(ValueError, match=r"x: expected fewer than 2\^31 - 1 elements on CUDA, got 2147483648"):
        sa.topk_threshold_(x, None, 5)
    assert torch.equal(x[:4], before)
