"""ProxSGD: the formulas, torch's SGD as a special case, and where it converges to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optim_infos import make_model, set_grads
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

import sparse_accel as sa

FLAGS: list[dict[str, Any]] = [{}, {"foreach": True}, {"foreach": False}, {"fused": True}]
each_flags = pytest.mark.parametrize("flags", FLAGS, ids=str)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_flags
@pytest.mark.parametrize("kind", [sa.GroupLasso, sa.GroupL0])
def test_formulas(flags: dict[str, Any], kind: Any) -> None:
    lr, rho, strength = 0.3, 0.4, 0.2
    weight, bias = Parameter(seeded(3, 4)), Parameter(seeded(3, seed=1))
    opt = sa.ProxSGD([weight, bias], lr=lr, rho=rho, penalty=kind(strength), **flags)
    now = {param: param.detach().clone() for param in (weight, bias)}
    m = {param: torch.zeros_like(value) for param, value in now.items()}
    for t in range(1, 6):
        set_grads([weight, bias], t)
        for param in (weight, bias):
            m[param] = (1 - rho) * m[param] + rho * param.grad
            x = now[param] - lr * m[param]
            if param is weight:
                norms = x.norm(dim=0, keepdim=True)
                if kind is sa.GroupLasso:
                    x = x * (1 - lr * strength * 3**0.5 / norms).clamp(min=0)
                else:
                    x = x * (norms**2 > 2 * lr * strength * 3)
            now[param] = x
        opt.step()
        for param in (weight, bias):
            torch.testing.assert_close(param.detach(), now[param], rtol=1e-12, atol=1e-14)
    assert opt.state[weight]["step"].item() == 5


@each_flags
def test_without_momentum_and_penalty_it_is_sgd(flags: dict[str, Any]) -> None:
    one, two = make_model(torch.float64), make_model(torch.float64)
    opts = [sa.ProxSGD(one.parameters(), lr=0.1, rho=1.0, **flags), torch.optim.SGD(two.parameters(), lr=0.1)]
    for step in range(4):
        for model, opt in zip((one, two), opts, strict=True):
            set_grads(model.parameters(), step)
            opt.step()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)


@each_flags
def test_rho_is_one_minus_torchs_momentum(flags: dict[str, Any]) -> None:
    """With the buffers equal at first (torch starts with the gradient, ProxSGD with zero)."""
    one, two = Parameter(seeded(3, 4)), Parameter(seeded(3, 4))
    ours = sa.ProxSGD([one], lr=0.1, rho=0.1, **flags)
    torchs = torch.optim.SGD([two], lr=0.1, momentum=0.9, dampening=0.9)
    torchs.state[two]["momentum_buffer"] = torch.zeros_like(two)
    for step in range(5):
        set_grads([one], step)
        set_grads([two], step)
        ours.step()
        torchs.step()
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("by", ["input", "output", "element"])
def test_converges_to_the_minimizer(by: str) -> None:
    inputs, targets = seeded(60, 12), seeded(60, 4, seed=1)
    targets[:, :3] += inputs[:, :3] @ seeded(3, 3, seed=2)
    penalty = sa.GroupLasso(0.2, by=by)
    step = 1 / torch.linalg.eigvalsh(inputs.T @ inputs / 60).max().item()

    def gradient(weight: Tensor) -> Tensor:
        return (inputs @ weight.T - targets).T @ inputs / 60

    reference = torch.zeros(4, 12, dtype=torch.float64)
    for _ in range(2000):
        reference -= step * gradient(reference)
        penalty.prox_(reference, step)
    weight = Parameter(torch.zeros(4, 12, dtype=torch.float64))
    opt = sa.ProxSGD([weight], lr=step / 4, rho=0.5, penalty=penalty)
    for _ in range(4000):
        weight.grad = gradient(weight.detach())
        opt.step()
    torch.testing.assert_close(weight.detach(), reference, rtol=1e-6, atol=1e-8)
    assert torch.equal(weight.eq(0), reference.eq(0))
    assert 0 < reference.eq(0).sum() < reference.numel()


def test_the_iterate_is_the_proximal_iterate() -> None:
    weight = Parameter(seeded(4, 5))
    opt = sa.ProxSGD([weight], lr=0.5, penalty=sa.GroupLasso(0.3))
    set_grads([weight])
    opt.step()
    before = weight.detach().clone()
    with opt.proximal_parameters():
        assert torch.equal(before, weight)
        with pytest.raises(RuntimeError, match="leave the context first"):
            opt.step()
    opt.finalize_()
    assert torch.equal(before, weight)


def test_penalty_scale_multiplies_the_strength() -> None:
    one, two = Parameter(seeded(4, 4)), Parameter(seeded(4, 4))
    scaled, plain = sa.ProxSGD([one], penalty=sa.GroupLasso(0.2)), sa.ProxSGD([two], penalty=sa.GroupLasso(0.6))
    scaled.state[one]["penalty_scale"] = 3.0
    for step in range(3):
        set_grads([one], step)
        set_grads([two], step)
        scaled.step()
        plain.step()
    torch.testing.assert_close(one, two, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [sa.GroupLasso, sa.GroupL0])
def test_differentiable_step(kind: Any) -> None:
    start, grad, buffer = (seeded(3, 4, seed=i).requires_grad_() for i in range(3))
    lr = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def step(start: Tensor, grad: Tensor, buffer: Tensor, lr: Tensor) -> tuple[Tensor, ...]:
        weight = start.clone()
        weight.grad = grad
        opt = sa.ProxSGD([weight], lr=lr, rho=0.4, penalty=kind(2.5), differentiable=True)
        opt.state[weight].update(step=torch.tensor(3.0), momentum_buffer=buffer.clone())
        opt.step()
        return weight, opt.state[weight]["momentum_buffer"]

    zeros = step(start, grad, buffer, lr)[0].eq(0).all(0).sum()
    assert 0 < zeros < 4
    assert torch.autograd.gradcheck(step, (start, grad, buffer, lr))


def test_clocks_advance_by_one_call() -> None:
    """On a GPU each call is a launch."""
    calls: list[str] = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(str(func))
            return func(*args, **(kwargs or {}))

    numbers = []
    for size in (3, 30):
        params = [Parameter(torch.ones(2, 2)) for _ in range(size)]
        opt = sa.ProxSGD(params, penalty=sa.GroupLasso(0.1))
        for _ in range(2):
            for param in params:
                param.grad = torch.ones_like(param)
            calls.clear()
            with Count():
                opt.step()
        numbers.append(len(calls))
        assert all(opt.state[param]["step"] == 2 for param in params)
    assert numbers[0] == numbers[1]
