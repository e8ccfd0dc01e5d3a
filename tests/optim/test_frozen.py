"""Frozen is frozen: what ``requires_grad_(False)`` holds, no optimizer, schedule or proximal iterate moves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_accel as sa


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


Optimizers = dict[str, Callable[[nn.Module], Any]]
KINDS: Optimizers = {
    "rmda": lambda m: sa.RMDA(sa.param_groups(m, sa.GroupLasso(0.05)), lr=0.1, momentum=0.5),
    "rmda_foreach": lambda m: sa.RMDA(sa.param_groups(m, sa.L1(0.05)), lr=0.1, momentum=0.5, foreach=True),
    "ramda": lambda m: sa.RAMDA(sa.param_groups(m, sa.GroupLasso(0.05)), lr=0.1, momentum=0.5),
    "prox_adamw": lambda m: sa.ProxAdamW(sa.param_groups(m, sa.GroupLasso(0.05)), lr=0.1),
    "prox_sgd": lambda m: sa.ProxSGD(sa.param_groups(m, sa.GroupLasso(0.05)), lr=0.1),
    "sppam": lambda m: sa.SPPAM(m.parameters(), lr=0.1, momentum=0.5, averaging=1),
}
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module, opt: Any, seed: int) -> None:
    target = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))

    def closure() -> Tensor:
        opt.zero_grad()
        loss = (model(X) - target).square().mean()
        loss.backward()
        return loss

    if isinstance(opt, sa.SPPAM):
        opt.step(closure)
    else:
        closure()
        opt.step()


def trained(kind: str, steps: int = 3) -> tuple[nn.Sequential, Any]:
    model = net()
    opt = KINDS[kind](model)
    for seed in range(steps):
        step(model, opt, seed)
    return model, opt


def values(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.filterwarnings("ignore:SPPAM")
@pytest.mark.parametrize("kind", KINDS)
def test_frozen_in_mid_training(kind: str) -> None:
    """With its last gradient still there: neither the loan of the iterate nor finalize_() moves it."""
    model, opt = trained(kind)
    model[0].requires_grad_(False)
    assert model[0].weight.grad is not None
    frozen, live = values(model[0]), values(model[2])
    with opt.proximal_parameters():
        assert equal(values(model[0]), frozen)
        assert equal(values(model[2]), live) == kind.startswith("prox")
    assert equal(values(model), [*frozen, *live])
    for seed in range(3, 6):
        step(model, opt, seed)
    assert equal(values(model[0]), frozen)
    assert not equal(values(model[2]), live)
    opt.finalize_()
    assert equal(values(model[0]), frozen)
    assert not equal(values(model[2]), live)


@pytest.mark.filterwarnings("ignore:SPPAM")
@pytest.mark.parametrize("kind", KINDS)
def test_its_state_waits_until_it_is_trained_again(kind: str) -> None:
    model, opt = trained(kind)
    model[0].requires_grad_(False)
    opt.zero_grad()
    before = values(model[0])
    opt.finalize_()
    state = {key: value for key, value in opt.state.items() if not key.requires_grad}
    assert len(state) == 2
    model[0].requires_grad_(True)
    opt.finalize_()
    assert equal(values(model[0]), before) == kind.startswith("prox")


@pytest.mark.parametrize("momentum", ["divide", "ramp", "constant"])
def test_restarts_and_ramps_leave_it(momentum: str) -> None:
    model, opt = trained("rmda")
    schedule = sa.lr_scheduler.MultiStageLR(opt, [1, 2], momentum=momentum)
    model[0].requires_grad_(False)
    opt.zero_grad()
    frozen = values(model[0])
    for seed in range(3, 7):
        step(model, opt, seed)
        schedule.step()
        opt.finalize_()
        assert equal(values(model[0]), frozen)
    model[0].requires_grad_(True)
    with opt.proximal_parameters():  # of a stage that has begun at these weights
        assert equal(values(model[0]), frozen)


@pytest.mark.parametrize("kind", ["rmda", "ramda", "prox_adamw", "prox_sgd", "sgd"])
def test_a_gradient_that_is_left_still_counts_as_in_torch(kind: str) -> None:
    model = net()
    opt = torch.optim.SGD(model.parameters(), lr=0.1) if kind == "sgd" else KINDS[kind](model)
    model(X).sum().backward()
    model[0].requires_grad_(False)
    before = values(model[0])
    opt.step()
    assert not equal(values(model[0]), before)
    opt.zero_grad()
    before = values(model[0])
    opt.step()
    assert equal(values(model[0]), before)


def test_sppam_does_not_extrapolate_it_inside_the_step() -> None:
    model, opt = trained("sppam")
    model[0].requires_grad_(False)
    opt.zero_grad()
    frozen, seen = values(model[0]), []

    def closure() -> Tensor:
        opt.zero_grad()
        seen.append(values(model[0]))
        loss = model(X).square().mean()
        loss.backward()
        return loss

    opt.step(closure)
    assert seen
    assert all(equal(item, frozen) for item in seen)


def test_exact_steps_refuse_it() -> None:
    layer = nn.Linear(4, 1)
    opt = sa.SPPAM(layer.parameters(), lr=1.0)
    layer.bias.requires_grad_(False)
    before = values(layer)
    with pytest.raises(ValueError, match=r"none frozen, got one of shape \(1,\).*step\(closure\)"):
        opt.step_glm(X, torch.ones(8))
    assert equal(values(layer), before)


@pytest.mark.parametrize("kind", ["rmda", "rmda_foreach", "ramda"])
def test_finalize_after_loading_the_best_weights(kind: str) -> None:
    """As documented: the iterate is the state's. With the weights alone it is the last one, with the state the best."""
    model, opt = trained(kind)
    best, state = copy.deepcopy(model.state_dict()), copy.deepcopy(opt.state_dict())
    with opt.proximal_parameters():
        final = values(model)
        saved = copy.deepcopy(model.state_dict())
    for seed in range(3, 6):
        step(model, opt, seed)
    with opt.proximal_parameters():
        last = values(model)
    model.load_state_dict(best)
    opt.finalize_()
    assert equal(values(model), last)
    model.load_state_dict(best)
    opt.load_state_dict(state)
    opt.finalize_()
    assert equal(values(model), final)
    fresh = net()
    fresh.load_state_dict(saved)
    assert equal(values(fresh), final)
