"""ProxAdamW: AdamW where nothing is penalized, the exact proximal operator where something is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from optim_infos import make_model, set_grads
from torch.nn import Parameter

import sparse_accel as sa

FLAGS: list[dict[str, Any]] = [{}, {"foreach": True}, {"foreach": False}]
each_flags = pytest.mark.parametrize("flags", FLAGS, ids=str)


@each_flags
@pytest.mark.parametrize("options", [{}, {"maximize": True, "weight_decay": 0.3}, {"betas": (0.5, 0.7), "eps": 1e-3}])
def test_without_a_penalty_it_is_adamw(flags: dict[str, Any], options: dict[str, Any]) -> None:
    """To the last bit by torch's ops; the native op rounds in its own order."""
    models = [make_model(), make_model()]
    ours = sa.ProxAdamW(models[0].parameters(), lr=0.02, **options, **flags)
    theirs = torch.optim.AdamW(models[1].parameters(), lr=0.02, **options, foreach=bool(flags.get("foreach")))
    for step in range(10):
        for model, opt in zip(models, (ours, theirs), strict=True):
            set_grads(model.parameters(), step)
            opt.step()
    for one, two in zip(*(model.parameters() for model in models), strict=True):
        if flags:
            assert torch.equal(one, two)
        torch.testing.assert_close(one, two, rtol=2e-6, atol=2e-7)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(ours.state[one][key], theirs.state[two][key], rtol=1e-6, atol=1e-8)


@each_flags
def test_formulas(flags: dict[str, Any]) -> None:
    """A step by hand, with the minimum found by proximal gradient steps."""
    weight = Parameter(torch.tensor([[0.5, -0.02], [0.3, 0.09], [-0.4, 0.05]], dtype=torch.float64))
    start = weight.detach().clone()
    lr, strength, decay, eps = 0.1, 0.4, 0.2, 0.05
    opt = sa.ProxAdamW([weight], lr=lr, eps=eps, weight_decay=decay, penalty=sa.GroupLasso(strength), **flags)
    set_grads([weight])
    opt.step()
    p = weight.grad.abs() + eps  # bias correction makes the first means the gradient itself
    x = (1 - lr * decay) * start - lr * weight.grad / p
    z = x.clone()
    for _ in range(5000):
        z = z - p * (z - x) / p.max()
        z = z * (1 - lr * strength * 3**0.5 / p.max() / z.norm(dim=0)).clamp(min=0)
    torch.testing.assert_close(weight.detach(), z, rtol=1e-9, atol=1e-12)
    assert weight[:, 1].eq(0).all()
    assert weight[:, 0].ne(0).all()


def test_state_of_adamw_is_taken_over() -> None:
    """The names are torch's: an AdamW run goes on with a penalty."""
    model = make_model()
    adamw = torch.optim.AdamW(model.parameters(), lr=0.02)
    for step in range(3):
        set_grads(model.parameters(), step)
        adamw.step()
    other = copy.deepcopy(model)
    ours = sa.ProxAdamW(other.parameters(), lr=0.02)
    ours.load_state_dict(adamw.state_dict())
    for step in range(3, 6):
        set_grads(model.parameters(), step)
        set_grads(other.parameters(), step)
        adamw.step()
        ours.step()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=2e-6, atol=2e-7)


@each_flags
def test_the_iterate_is_the_proximal_iterate(flags: dict[str, Any]) -> None:
    model = make_model()
    opt = sa.ProxAdamW(sa.param_groups(model, sa.GroupLasso(0.05)), lr=0.05, **flags)
    for step in range(3):
        set_grads(model.parameters(), step)
        opt.step()
    before = [p.detach().clone() for p in model.parameters()]
    with opt.proximal_parameters():
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    opt.finalize_()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def seeded(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_differentiable_step() -> None:
    """Autograd through a step and its root: derivatives in the weight, the gradient, the state and lr."""
    start, grad, mean = (seeded(seed).requires_grad_() for seed in range(3))
    square = (seeded(3).square() + 0.1).requires_grad_()
    lr = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def step(start: Any, grad: Any, mean: Any, square: Any, lr: Any) -> tuple[torch.Tensor, ...]:
        weight = start.clone()
        weight.grad = grad
        opt = sa.ProxAdamW([weight], lr=lr, penalty=sa.GroupLasso(30.0), differentiable=True)
        opt.state[weight].update(step=torch.tensor(3.0), exp_avg=mean.clone(), exp_avg_sq=square.clone())
        opt.step()
        return weight, opt.state[weight]["exp_avg"], opt.state[weight]["exp_avg_sq"]

    weight = step(start, grad, mean, square, lr)[0]
    assert 0 < weight.eq(0).all(0).sum() < 4  # some groups are zero, some are not
    assert torch.autograd.gradcheck(step, (start, grad, mean, square, lr))
