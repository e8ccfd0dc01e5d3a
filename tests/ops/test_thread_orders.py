"""The CUDA kernels give the same bits in whatever order threads and blocks run: no race, no order of summation left
to chance. Executed by the emulator."""

from __future__ import annotations

import functools
from types import ModuleType

import pytest
import torch
from op_cases import like, randn
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
