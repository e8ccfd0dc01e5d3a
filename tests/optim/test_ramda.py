"""RAMDA: its formulas, stages, the proximal iterate, and that it finds the minimizer."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from optim_infos import make_model, set_grads
from torch.nn import Parameter

import sparse_accel as sa

FLAGS: list[dict[str, Any]] = [{}, {"foreach": True}, {"foreach": False}]
each_flags = pytest.mark.parametrize("flags", FLAGS, ids=str)


@each_flags
def test_formulas(flags: dict[str, Any]) -> None:
    """Two steps by hand, with the minimum found by proximal gradient steps."""
    weight = Parameter(torch.tensor([[0.5, -0.2], [0.3, 0.9], [-0.4, 0.05]], dtype=torch.float64))
    anchor = weight.detach().clone()
    lr, c, eps, strength = 0.2, 0.25, 0.05, 0.3
    opt = sa.RAMDA([weight], lr=lr, momentum=c, eps=eps, penalty=sa.GroupLasso(strength), **flags)
    v, u, w, alpha = torch.zeros_like(anchor), torch.zeros_like(anchor), anchor.clone(), 0.0
    for t in (1, 2):
        set_grads([weight], t)
        opt.step()
        s = lr * math.sqrt(t)
        alpha += s
        v += s * weight.grad
        u += s * weight.grad**2
        p = u ** (1 / 3) + eps
        z = w.clone()
        for _ in range(5000):
            z = z - (v + p * (z - anchor)) / p.max()
            norms = z.norm(dim=0)
            z = z * (1 - alpha * strength * math.sqrt(3) / p.max() / norms).clamp(min=0)
        w = (1 - c) * w + c * z
        torch.testing.assert_close(weight.detach(), w, rtol=1e-9, atol=1e-12)
    state = opt.state[weight]
    torch.testing.assert_close(state["dual"], v)
    torch.testing.assert_close(state["square"], u)
    assert torch.equal(state["anchor"], anchor)
    assert state["step"].item() == 2
    assert state["alpha"].item() == pytest.approx(alpha)


@each_flags
def test_restart_is_a_fresh_stage(flags: dict[str, Any]) -> None:
    model = make_model()
    opt = sa.RAMDA(sa.param_groups(model, sa.GroupLasso(0.01)), lr=0.02, momentum=0.3, **flags)
    for step in range(3):
        set_grads(model.parameters(), step)
        opt.step()
    fresh = copy.deepcopy(model)
    other = sa.RAMDA(sa.param_groups(fresh, sa.GroupLasso(0.01)), lr=0.02, momentum=0.3, **flags)
    opt.restart()
    for step in range(3, 5):
        set_grads(model.parameters(), step)
        set_grads(fresh.parameters(), step)
        opt.step()
        other.step()
    for one, two in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, two)


def test_eps_follows_gamma_from_the_restart_on() -> None:
    """Until the first step of the new stage the proximal iterate is the finished stage's, with its eps."""
    weight = Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    opt = sa.RAMDA([weight], lr=0.1, momentum=0.1, eps=1e-2, penalty=sa.GroupLasso(0.1))
    schedule = sa.lr_scheduler.MultiStageLR(opt, [1], gamma=0.1)
    set_grads([weight])
    opt.step()
    with opt.proximal_parameters():
        before = weight.detach().clone()
    schedule.step()
    assert opt.param_groups[0]["eps"] == 1e-2
    with opt.proximal_parameters():
        assert torch.equal(weight, before)
    resumed = Parameter(weight.detach().clone())
    other = sa.RAMDA([resumed], lr=0.5, momentum=0.9)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for param, optimizer in ((weight, opt), (resumed, other)):
        set_grads([param], 1)
        optimizer.step()
        assert optimizer.param_groups[0]["eps"] == pytest.approx(1e-3)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2)
        assert optimizer.param_groups[0]["momentum"] == 1.0
        assert optimizer.state[param]["step"].item() == 1
    assert torch.equal(weight, resumed)
    opt.restart()
    set_grads([weight], 2)
    opt.step()
    assert opt.param_groups[0]["eps"] == pytest.approx(1e-3)  # a restart by hand leaves it


@each_flags
@pytest.mark.parametrize("penalty", [sa.GroupLasso(0.02), sa.L1(0.02), sa.GroupL0(0.002)], ids=str)
def test_proximal_iterate_is_the_iterate_of_momentum_one(flags: dict[str, Any], penalty: Any) -> None:
    models = [make_model(), make_model()]
    slow, fast = (
        sa.RAMDA(sa.param_groups(model, penalty), lr=0.05, momentum=momentum, **flags)
        for model, momentum in zip(models, (0.01, 1.0), strict=True)
    )
    for step in range(4):
        for model, opt in zip(models, (slow, fast), strict=True):
            set_grads(model.parameters(), step)
            opt.step()
    before = [p.detach().clone() for p in models[0].parameters()]
    state = copy.deepcopy(slow.state_dict())
    with slow.proximal_parameters():
        for one, two in zip(*(model.parameters() for model in models), strict=True):
            assert torch.equal(one, two)
    assert all(torch.equal(a, b) for a, b in zip(before, models[0].parameters(), strict=True))
    for old, new in zip(state["state"].values(), slow.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)


def test_a_great_penalty_takes_all() -> None:
    model = make_model()
    opt = sa.RAMDA(sa.param_groups(model, sa.GroupLasso(1e3)), momentum=1.0)
    set_grads(model.parameters())
    opt.step()
    assert all(p.eq(0).all() for p in model.parameters() if p.dim() > 1)
    assert all(p.ne(0).any() for p in model.parameters() if p.dim() == 1)


def seeded(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_differentiable_step() -> None:
    """Autograd through a step and its root: derivatives in the weight, the gradient, the state and lr."""
    start, grad, dual, anchor = (seeded(seed).requires_grad_() for seed in range(4))
    square = (seeded(4).square() + 0.1).requires_grad_()
    lr = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def step(start: Any, grad: Any, dual: Any, square: Any, anchor: Any, lr: Any) -> tuple[torch.Tensor, ...]:
        weight = start.clone()
        weight.grad = grad
        opt = sa.RAMDA([weight], lr=lr, momentum=0.4, eps=0.1, penalty=sa.GroupLasso(0.6), differentiable=True)
        state = {"dual": dual.clone(), "square": square.clone(), "anchor": anchor.clone()}
        alpha = torch.tensor(1.3, dtype=torch.float64)
        opt.state[weight].update(step=torch.tensor(3.0), alpha=alpha, **state)
        opt.step()
        return weight, opt.state[weight]["dual"], opt.state[weight]["square"], opt.state[weight]["alpha"]

    weight = step(start, grad, dual, square, anchor, lr)[0]
    assert 0 < (weight - 0.6 * start).abs().sum(0).lt(1e-12).sum() < 4  # some groups are zero, some are not
    assert torch.autograd.gradcheck(step, (start, grad, dual, square, anchor, lr))


def test_differentiable_step_at_a_zero_group_has_no_nan() -> None:
    start = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    grad = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    weight = start.clone()
    weight.grad = grad
    opt = sa.RAMDA([weight], momentum=0.4, penalty=sa.GroupLasso(0.3), differentiable=True)
    zeros = torch.zeros_like(start)
    state = {"dual": zeros.clone(), "square": zeros.clone(), "anchor": start.clone()}
    opt.state[weight].update(opt._new_scalars(weight), **state)
    opt.step()
    derivatives = torch.autograd.grad(weight.sum(), (start, grad))
    torch.testing.assert_close(derivatives[0], torch.full_like(start, 0.6))
    torch.testing.assert_close(derivatives[1], torch.zeros_like(start))
