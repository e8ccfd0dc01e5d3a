"""The CUDA kernels give the same bits in whatever order threads and blocks run: no race, no order of summation left
to chance; and those for clusters of blocks what the plain ones give. Executed by the emulator."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from op_cases import DTYPES, VALUE_TOLERANCE, assert_near, like, randn
from torch import Tensor

from sparse_accel import ops
from sparse_accel.groups import BY, Grouping, GroupLayout, group_layout

CPU = torch.device("cpu")
SHAPES = [(40, 70), (12, 6, 3, 3), (3, 5, 9, 11), (700, 3)]


def results(by: str) -> list[Tensor]:
    """What every op makes of the same tensors."""
    weights = [randn(shape, torch.float32, CPU, i) for i, shape in enumerate(SHAPES)]
    layouts = [group_layout(weight, Grouping(by)) for weight in weights]
    scores = ops.group_score(weights, layouts)
    masks = ops.group_topk([(score * 4).round() for score in scores], sum(score.numel() for score in scores) // 2)
    shrunk = [like(weight) for weight in weights]
    values = ops.prox_(shrunk, layouts, [0.5] * len(weights), return_value=True)
    assert values is not None
    params, points = [like(weight) for weight in weights], [like(weight) for weight in weights]
    steps = [torch.zeros(()) for _ in weights]
    alphas = [torch.zeros((), dtype=torch.float64) for _ in weights]
    state = (params, [randn(shape, torch.float32, CPU, 9) for shape in SHAPES], points, weights, steps, alphas)
    ops.rmda_step_(*state, layouts, prox="soft", strengths=[0.3] * len(weights), lr=0.5, momentum=0.4)
    sgd = (
        [like(weight) for weight in weights],
        state[1],
        [like(x) for x in points],
        [torch.zeros(()) for _ in weights],
    )
    ops.prox_sgd_step_(*sgd, layouts, prox="soft", strengths=[0.3] * len(weights), lr=0.5, rho=0.4)
    return [
        *sgd[0],
        *sgd[2],
        *scores,
        *masks,
        *shrunk,
        values,
        *params,
        *points,
        *steps,
        *alphas,
        *in_a_metric(weights, layouts),
    ]


def in_a_metric(weights: list[Tensor], layouts: list[GroupLayout]) -> list[Tensor]:
    """What the steps of RAMDA and ProxAdamW make of them."""
    out: list[Tensor] = []
    for rule in ("ramda", "adamw"):
        grads = [randn(tuple(weight.shape), torch.float32, CPU, 9) for weight in weights]
        params, means, squares = ([like(weight) for weight in weights] for _ in range(3))
        for mean, square in zip(means, squares, strict=True):
            mean.mul_(0.1)
            square.square_().add_(0.1)
        steps = [torch.full((), 3.0) for _ in weights]
        state, options = (params, grads, means, squares), {"prox": "soft", "strengths": [0.3] * len(weights)}
        if rule == "ramda":
            alphas = [torch.ones((), dtype=torch.float64) for _ in weights]
            ops.ramda_step_(*state, weights, steps, alphas, layouts, lr=0.1, momentum=0.4, eps=1e-6, **options)
        else:
            numbers = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.01}
            ops.prox_adamw_step_(*state, steps, layouts, **numbers, **options)
        out += [*params, *means, *squares, *steps]
    return out


@functools.cache
def forward_results(by: str) -> list[Tensor]:
    return results(by)


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("order", ["reverse", "random:1", "random:2"])
def test_same_bits(emulated: ModuleType, by: str, order: str) -> None:
    emulated.set_order("forward", 1)
    expected = forward_results(by)
    name, _, seed = order.partition(":")
    emulated.set_order(name, int(seed or 1))
    try:
        found = results(by)
    finally:
        emulated.set_order("forward", 1)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


# By input, on a device with clusters: blocks on their own (few rows) and clusters (whose last block has fewer rows), a
# last strip that is not full, strips of 3 x 3 kernels; and what is left to the plain kernels.
STRIPS = [(333, 40), (650, 8), (9, 72), (50, 16, 3, 3), (330, 8, 3, 3)]
PLAIN = [(1, 40), (400, 1), (333, 37), (30, 4, 9, 11)]


@pytest.fixture
def clusters(emulated: ModuleType) -> Iterator[ModuleType]:
    emulated.set_order("forward", 1)
    yield emulated
    emulated.set_order("forward", 1)
    emulated.set_clusters(0)


def shifted(tensor: Tensor) -> Tensor:
    """The same past a 16-byte boundary."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return memory[1:].view(tensor.shape).copy_(tensor)


def copies(tensors: list[Tensor]) -> list[Tensor]:
    """Shifted ones are shifted again."""
    return [shifted(tensor) if tensor.data_ptr() % 16 else like(tensor) for tensor in tensors]


def strided_steps(weights: list[Tensor], grads: list[Tensor], prox: str, t: float) -> tuple[list[Tensor], list[Tensor]]:
    """What the ops that shrink make of groups by input: results of norms, and state that no norm enters."""
    layouts = [group_layout(weight, "input") for weight in weights]
    strengths = [(0.3, 0.0, 4.0)[i % 3] for i in range(len(weights))]
    shrunk, params, sgd = copies(weights), copies(weights), copies(weights)
    value = ops.prox_(shrunk, layouts, strengths, prox=prox, return_value=True)
    assert value is not None
    points = [weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True) for weight in weights]
    anchors, buffers = [-point for point in points], [torch.zeros_like(point) for point in points]
    steps, ticks = [torch.tensor(t) for _ in weights], [torch.tensor(t) for _ in weights]
    alphas = [torch.ones((), dtype=torch.float64) for _ in weights]
    options = {"prox": prox, "strengths": strengths, "lr": 0.5}
    ops.rmda_step_(params, grads, points, anchors, steps, alphas, layouts, momentum=0.5, **options)
    ops.prox_sgd_step_(sgd, grads, buffers, ticks, layouts, rho=0.5, **options)
    scores = ops.group_score(weights, layouts)
    return [*shrunk, value, *params, *sgd, *scores], [*points, *steps, *alphas, *buffers, *ticks]


@pytest.mark.parametrize("dtype, prox", [*((dtype, "soft") for dtype in DTYPES), (torch.float32, "hard")])
def test_clusters_give_what_plain_kernels_give(clusters: ModuleType, dtype: torch.dtype, prox: str) -> None:
    """Bit for bit where the sums are exact (whole numbers), and in what no sum enters; else to rounding."""
    normal = [randn(shape, dtype, CPU, i) for i, shape in enumerate(STRIPS + PLAIN)]
    normal.append(shifted(normal[0]))
    whole = [(weight * 2).round() for weight in normal]
    for weights, t in ((normal, 3.0), (whole, 0.0)):
        grads = [4 * (weight.flip(0) * (1 if weights is normal else 0.5)).round() for weight in weights]
        clusters.set_clusters(0)
        expected, expected_state = strided_steps(weights, grads, prox, t)
        clusters.set_clusters(8)
        found, state = strided_steps(weights, grads, prox, t)
        assert all(torch.equal(*pair) for pair in zip(state, expected_state, strict=True))
        for x, y in zip(found, expected, strict=True):
            assert torch.equal(x == 0, y == 0)
            if weights is whole and x.dim() > 1:  # (penalties are sums of roots)
                assert torch.equal(x, y)
            assert_near(x, y, VALUE_TOLERANCE[dtype])
    if dtype == torch.float32 and prox == "soft":
        for order in ("reverse", "random"):
            clusters.set_order(order, 3)
            again, state_again = strided_steps(weights, grads, prox, t)
            assert all(torch.equal(*pair) for pair in zip(again + state_again, found + state, strict=True))


@pytest.mark.parametrize("shape, strips", [(shape, True) for shape in STRIPS] + [(shape, False) for shape in PLAIN])
def test_strips_take_one_launch(clusters: ModuleType, shape: tuple[int, ...], strips: bool) -> None:
    """Chosen where it fits, and only there: without clusters, and past a 16-byte boundary, it takes three."""
    layout = [group_layout(torch.ones(shape), "input")]
    found = {}
    for name, tensor in (("aligned", torch.ones(shape)), ("shifted", shifted(torch.ones(shape)))):
        for blocks in (0, 8):
            clusters.set_clusters(blocks)
            before = clusters.launches()
            ops.prox_([tensor], layout, [0.1])
            found[name, blocks] = clusters.launches() - before
    if strips:
        assert found == {("aligned", 0): 3, ("aligned", 8): 1, ("shifted", 0): 3, ("shifted", 8): 3}
    else:
        assert found["aligned", 8] == found["aligned", 0]
        assert found["shifted", 8] == found["shifted", 0]


def test_a_strip_that_no_shared_memory_holds_is_left_to_the_plain_kernels(clusters: ModuleType) -> None:
    tensor = torch.ones(3500, 4)
    for blocks, launches in ((8, 1), (2, 3)):
        clusters.set_clusters(blocks)
        before = clusters.launches()
        found = like(tensor)
        ops.prox_([found], [group_layout(tensor, "input")], [0.5])
        assert clusters.launches() - before == launches
        torch.testing.assert_close(found, tensor * 0.5)


def test_emulated_clusters_are_of_a_kind_that_exists(clusters: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"blocks: expected 0 \(no clusters\) to 8, got 9"):
        clusters.set_clusters(9)
