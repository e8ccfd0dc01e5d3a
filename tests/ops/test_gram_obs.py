"""The elimination op: every backend against the plain twin, sets, ties, refusals."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparse_accel import ops, reference
from sparse_accel.ops.gram_obs import gram_obs


def problem(problems: int, units: int, block: int, outputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The inverse of a correlated, damped Gram matrix and weights, float64."""
    generator = torch.Generator().manual_seed(seed)
    n = units * block

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    hidden = draw(problems, n, n) @ draw(problems, n, n + 3)
    gram = hidden @ hidden.mT
    damping = 1e-3 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(n, dtype=torch.float64)
    return torch.cholesky_inverse(torch.linalg.cholesky(gram + damping)), draw(problems, outputs, n)


def until_a_tie(order: Tensor, expected: Tensor, damages: Tensor, costs: Tensor) -> tuple[Tensor, ...]:
    """Each problem up to the first step at which another unit was taken at the same cost, to within the rounding of
    cuSOLVER and LAPACK; from there on the two are different problems. Cut to zeros; at most a tenth may be."""
    same = torch.ones_like(expected, dtype=torch.bool)
    for problem_ in range(len(expected)):
        differ = (order[problem_] != expected[problem_]).nonzero().flatten().tolist()
        if differ:
            torch.testing.assert_close(damages[problem_, differ[0]], costs[problem_, differ[0]], rtol=1e-9, atol=0)
            same[problem_, differ[0] :] = False
    assert int((~same).sum()) <= 0.1 * same.numel(), "the order differs in more than a late tie"
    return tuple(values * same for values in (order, expected, damages, costs))


def check(device: torch.device, inverse: Tensor, weight: Tensor, block: int, steps: int, sets: Tensor | None) -> None:
    before = inverse.clone(), weight.clone()
    there = None if sets is None else sets.to(device)
    order, damages = gram_obs(inverse.to(device), weight.to(device), block, steps, there)
    expected, costs = reference.gram_obs(inverse, weight, block, steps, sets)
    if device.type == "cuda":
        order, expected, damages, costs = until_a_tie(order.cpu(), expected, damages.cpu(), costs)
    assert torch.equal(order, expected)
    torch.testing.assert_close(damages, costs, rtol=1e-9, atol=1e-12 * float(costs.sum()))
    assert torch.equal(inverse, before[0])
    assert torch.equal(weight, before[1])


@pytest.mark.parametrize(
    "problems, units, block, outputs, steps",
    [
        (1, 1, 1, 1, 1),
        (1, 7, 1, 3, 5),
        (2, 8, 1, 20, 8),
        (1, 100, 1, 4, 97),  # several chunks, panels and compactions
        (1, 33, 1, 4, 33),
        (3, 10, 2, 5, 9),
        (1, 17, 9, 6, 17),
        (2, 9, 25, 3, 7),
        (1, 5, 70, 8, 4),  # a unit wider than a panel
        (1, 100, 1, 80, 97),  # so many outputs that W' W is held, and not W
        (1, 17, 9, 90, 17),
        (2, 5, 70, 200, 4),
        (0, 4, 2, 3, 2),
        (2, 4, 2, 3, 0),
        (2, 4, 2, 0, 3),
    ],
)
def test_plain_twin(backend: Any, problems: int, units: int, block: int, outputs: int, steps: int) -> None:
    inverse, weight = problem(problems, units, block, outputs)
    check(backend.device, inverse, weight, block, steps, None)


@pytest.mark.parametrize("block", [1, 3])
def test_sets_take_turns(backend: Any, block: int) -> None:
    inverse, weight = problem(2, 12, block, 5, seed=1)
    for sets in (torch.arange(12) // 4, torch.arange(12) % 3, torch.arange(12), torch.zeros(12, dtype=torch.int64)):
        check(backend.device, inverse, weight, block, 12, sets)
    sets = torch.arange(12) % 3
    order, _ = gram_obs(*(x.to(backend.device) for x in (inverse, weight)), block, 12, sets.to(backend.device))
    for row in order.cpu():
        assert all(sorted(sets[row[i : i + 3]].tolist()) == [0, 1, 2] for i in range(0, 12, 3))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 45), st.integers(1, 4), st.integers(1, 6), st.integers(0, 10**6), st.data())
def test_random_problems(p: int, units: int, block: int, outputs: int, seed: int, data: st.DataObject) -> None:
    inverse, weight = problem(p, units, block, outputs, seed)
    check(torch.device("cpu"), inverse, weight, block, data.draw(st.integers(0, units)), None)


def test_the_inverse_after_removals_is_that_of_the_rest(backend: Any) -> None:
    """The next cost, computed afresh on the units that are left."""
    inverse, weight = problem(1, 9, 2, 4, seed=3)
    gram = torch.linalg.inv(inverse[0])
    right = weight[0] @ gram
    order, damages = gram_obs(inverse.to(backend.device), weight.to(backend.device), 2, 9)
    left = list(range(9))
    for unit, damage in zip(order[0].tolist(), damages[0].tolist(), strict=True):
        at = (torch.tensor(left)[:, None] * 2 + torch.arange(2)).flatten()
        q = torch.linalg.inv(gram[at][:, at])
        w = right[:, at] @ q
        costs = [
            float((w[:, c] @ torch.linalg.inv(q[c][:, c]) * w[:, c]).sum())
            for c in (slice(2 * i, 2 * i + 2) for i in range(len(left)))
        ]
        assert costs.index(min(costs)) == left.index(unit)
        assert damage == pytest.approx(min(costs), rel=1e-8)
        left.remove(unit)


def test_ties_go_to_the_lowest_index(backend: Any) -> None:
    eye = torch.eye(40, dtype=torch.float64, device=backend.device)[None]
    for block in (1, 2):
        order, damages = gram_obs(eye, torch.ones_like(eye[:, :3]), block, 40 // block)
        assert order[0].tolist() == list(range(40 // block))
        assert torch.equal(damages, torch.full_like(damages, 3.0 * block))


def test_views(backend: Any) -> None:
    inverse, weight = (x.to(backend.device) for x in problem(2, 6, 2, 3))
    expected = gram_obs(inverse, weight, 2, 4)
    found = gram_obs(inverse.mT.contiguous().mT, weight.mT.contiguous().mT, 2, 4)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("outputs", [8, 100])
def test_threads_do_not_matter(outputs: int) -> None:
    inverse, weight = problem(1, 90, 2, outputs, seed=5)
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2):
            torch.set_num_threads(number)
            results.append(gram_obs(inverse, weight, 2, 80))
    finally:
        torch.set_num_threads(threads)
    for order, damages in results[1:]:
        assert torch.equal(order, results[0][0])
        torch.testing.assert_close(damages, results[0][1], rtol=1e-10, atol=0)


@pytest.mark.parametrize("outputs", [8, 200])
def test_rows_at_a_time_do_not_matter(outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inverse, weight = problem(1, 60, 3, outputs, seed=6)
    expected = gram_obs(inverse, weight, 3, 50)
    monkeypatch.setattr(sys.modules["sparse_accel.native.gram_obs"], "_ROWS", 7)
    found = gram_obs(inverse, weight, 3, 50)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=0)


@pytest.mark.parametrize("outputs", [8, 100])
def test_one_triangle_of_the_inverse_is_enough_on_a_cpu(outputs: int) -> None:
    """Columns of a unit apart (block 1), the kernels read what lies on and below the diagonal, of all units."""
    inverse, weight = problem(1, 90, 1, outputs, seed=7)
    expected = gram_obs(inverse, weight, 1, 80)
    found = gram_obs(inverse.tril() + 1e3 * torch.ones_like(inverse).triu(1), weight, 1, 80)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("steps", [1, 3])
def test_matrices_that_are_not_definite(backend: Any, steps: int) -> None:
    inverse, weight = problem(2, 4, 2, 3)
    inverse[1] = -inverse[1]
    with pytest.raises(ValueError, match="inverse: expected positive definite matrices, and finite weights"):
        gram_obs(inverse.to(backend.device), weight.to(backend.device), 2, steps)
    weight[0] = torch.nan
    with pytest.raises(ValueError, match="inverse: expected positive definite matrices, and finite weights"):
        gram_obs(-inverse[1:].to(backend.device), weight[:1].to(backend.device), 2, steps)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"inverse": torch.eye(4)[None]}, TypeError, r"inverse: expected float64, got float32"),
        ({"weight": torch.ones(1, 2, 4)}, TypeError, r"weight: expected float64, got float32"),
        ({"inverse": torch.eye(4).double()}, ValueError, r"inverse: expected \[problems, n, n\], got \[4, 4\]"),
        ({"weight": torch.ones(1, 2, 3).double()}, ValueError, r"weight: expected \[problems, d, n\] with 1 problems"),
        ({"block": 3}, ValueError, r"block: expected a divisor of 4, the number of columns, got 3"),
        ({"block": 0}, ValueError, r"block: expected a divisor of 4, the number of columns, got 0"),
        ({"steps": 5}, ValueError, r"steps: expected 0 to 4, the number of units, got 5"),
        ({"steps": -1}, ValueError, r"steps: expected 0 to 4, the number of units, got -1"),
        ({"sets": torch.zeros(3, dtype=torch.int64)}, ValueError, r"sets: expected \[4\] int64 on cpu, got \[3\]"),
        ({"sets": torch.zeros(4)}, ValueError, r"sets: expected \[4\] int64 on cpu, got \[4\] float32"),
        ({"sets": torch.tensor([0, 0, 0, 4])}, ValueError, r"sets: expected numbers in \[0, 4\), got 4"),
        ({"sets": torch.tensor([0, -1, 0, 0])}, ValueError, r"sets: expected numbers in \[0, 4\), got -1"),
        ({"sets": torch.tensor([0, 0, 0, 1])}, ValueError, r"sets: expected sets of equal size, .* got sizes \[3, 1\]"),
    ],
)
def test_errors(change: dict[str, Any], error: type, message: str) -> None:
    eye = torch.eye(4, dtype=torch.float64)[None]
    arguments = {"inverse": eye, "weight": eye[:, :2], "block": 1, "steps": 2, "sets": None} | change
    with pytest.raises(error, match=message):
        gram_obs(**arguments)


def test_registration() -> None:
    inverse, weight = problem(2, 6, 2, 3)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for sets in (None, torch.arange(6) % 2):
        torch.library.opcheck(torch.ops.sparse_accel.gram_obs.default, (inverse, weight, 2, 4, sets), test_utils=utils)


def test_twin_is_reached_through_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    inverse, weight = problem(2, 6, 2, 3)
    expected = gram_obs(inverse, weight, 2, 4)
    monkeypatch.setattr(ops._library, "_on_device", lambda tensor: False)
    found = gram_obs(inverse, weight, 2, 4)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
    order, damages = gram_obs(inverse.to("meta"), weight.to("meta"), 2, 4)
    assert order.shape == damages.shape == (2, 4)
