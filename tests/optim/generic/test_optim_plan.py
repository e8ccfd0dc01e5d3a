"""What a step prepared is used again only where nothing has changed: an optimizer that keeps nothing takes the same
steps, whatever happens between them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_accel as sa
from sparse_accel.optim.common.plan import Plans

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "RMDA": lambda groups: sa.RMDA(groups, lr=0.1, momentum=0.3, weight_decay=0.01),
    "RMDA, no decay": lambda groups: sa.RMDA(groups, lr=0.1, momentum=0.3),
    "RAMDA": lambda groups: sa.RAMDA(groups, lr=0.05, momentum=0.3),
    "ProxAdamW": lambda groups: sa.ProxAdamW(groups, lr=0.01, weight_decay=0.1),
    "ProxSGD": lambda groups: sa.ProxSGD(groups, lr=0.05),
}


def make(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 5))
    return model, OPTIMIZERS[name](sa.param_groups(model, sa.GroupLasso(1e-3, by="input")))


def train(model: nn.Module, optimizer: Any, seed: int) -> None:
    optimizer.zero_grad()
    generator = torch.Generator().manual_seed(seed)
    model(torch.randn(4, 3, 6, 6, generator=generator)).square().mean().backward()
    optimizer.step()


def conv(model: nn.Module) -> nn.Parameter:
    weight = model[0].weight  # type: ignore[index]
    assert isinstance(weight, nn.Parameter)
    return weight


def other_strides(model: nn.Module, optimizer: Any) -> None:
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def new_memory(model: nn.Module, optimizer: Any) -> None:
    for param in model.parameters():
        param.data = param.data.clone()


def other_strength(model: nn.Module, optimizer: Any) -> None:
    penalty = optimizer.param_groups[0]["penalty"]
    if "strength" in penalty:  # no constraint
        penalty["strength"] *= 2


def other_penalty(model: nn.Module, optimizer: Any) -> None:
    optimizer.param_groups[0]["penalty"] = sa.GroupLasso(2e-3, by="output")


def loaded(model: nn.Module, optimizer: Any) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def other_state(model: nn.Module, optimizer: Any) -> None:
    state = optimizer.state[conv(model)]
    optimizer.state[conv(model)] = {
        key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()
    }


def state_entry(model: nn.Module, optimizer: Any) -> None:
    state = optimizer.state[conv(model)]
    state["step"] = state["step"] + 1


def dense_scale(model: nn.Module, optimizer: Any) -> None:
    optimizer.state[conv(model)]["penalty_scale"] = 0.5


def other_numbers(model: nn.Module, optimizer: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= 0.7


def tensor_lr(model: nn.Module, optimizer: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor([float(group["lr"]) * 0.9])


def other_implementation(model: nn.Module, optimizer: Any) -> None:
    for group in optimizer.param_groups:
        group["foreach"] = None if group["foreach"] else True


def momentum_ramp(model: nn.Module, optimizer: Any) -> None:
    for group in optimizer.param_groups:
        group["momentum_ramp"] = 1
    getattr(optimizer, "restart", lambda: None)()


def constrained(model: nn.Module, optimizer: Any) -> None:
    optimizer.param_groups[0]["penalty"] = sa.Box(-0.1, 0.2)


def regrouped(model: nn.Module, optimizer: Any) -> None:
    taken = optimizer.param_groups[0]["params"].pop()
    optimizer.param_groups[-1]["params"].append(taken)


def forgotten(model: nn.Module, optimizer: Any) -> None:
    optimizer.state.clear()


def evaluated(model: nn.Module, optimizer: Any) -> None:
    optimizer.eval()
    optimizer.train()


def lent(model: nn.Module, optimizer: Any) -> None:
    with optimizer.proximal_parameters():
        model(torch.zeros(1, 3, 6, 6))


def nothing(model: nn.Module, optimizer: Any) -> None:
    pass


CHANGES = [
    nothing,
    other_strides,
    new_memory,
    other_strength,
    other_penalty,
    loaded,
    other_state,
    state_entry,
    dense_scale,
    other_numbers,
    tensor_lr,
    other_implementation,
    momentum_ramp,
    constrained,
    regrouped,
    forgotten,
    evaluated,
    lent,
]


@pytest.fixture
def no_plans(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Call with True, and nothing is kept from then on."""
    original = Plans.find
    return lambda off: monkeypatch.setattr(Plans, "find", (lambda *_: None) if off else original)


def snapshot(model: nn.Module, optimizer: Any) -> list[Tensor]:
    values = [param.detach().clone() for param in model.parameters()]
    for param in model.parameters():
        values += [value.clone() for value in optimizer.state.get(param, {}).values() if isinstance(value, Tensor)]
    return values


def run(name: str, changes: list[Callable[[nn.Module, Any], None]]) -> list[Tensor]:
    model, optimizer = make(name)
    for step, change in enumerate(changes):
        train(model, optimizer, step)
        change(model, optimizer)
    train(model, optimizer, len(changes))
    return snapshot(model, optimizer)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_same_steps_whatever_changes(name: str, change: Any, no_plans: Callable[[bool], None]) -> None:
    changes = [nothing, nothing, nothing, change, nothing, nothing, change, nothing]
    kept = run(name, changes)
    no_plans(True)
    assert all(torch.equal(a, b) for a, b in zip(kept, run(name, changes), strict=True))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_same_steps_after_any_sequence(name: str, seed: int, no_plans: Callable[[bool], None]) -> None:
    changes = random.Random(seed).choices([nothing] * 12 + CHANGES, k=30)
    kept = run(name, changes)
    no_plans(True)
    assert all(torch.equal(a, b) for a, b in zip(kept, run(name, changes), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_plans_are_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the third step on nothing is gathered, and what is no more than its op goes there at once."""
    model, optimizer = make(name)
    calls: dict[str, int] = {"_gather": 0, "_update": 0}
    for method in calls:
        original = getattr(type(optimizer), method)

        def counted(*args: Any, method: str = method, original: Any = original, **kwargs: Any) -> Any:
            calls[method] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(type(optimizer), method, counted)
    for step in range(6):
        train(model, optimizer, step)
    groups = len(optimizer.param_groups)
    assert calls == {"_gather": 2 * groups, "_update": (6 if name == "RMDA" else 2) * groups}  # RMDA's has a decay


def test_versions_tell_of_planned_steps() -> None:
    """Autograd refuses to go back through weights that a step has changed."""
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = sa.ProxSGD([weight], lr=0.1)
    for _ in range(4):
        before, loss = weight._version, (weight**2).sum()
        weight.grad = torch.ones(3, 3)
        optimizer.step()
        assert weight._version > before
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_plan_wants_its_own_gradients() -> None:
    """What was read holds for one step, and for the list that it was read with."""
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = sa.ProxSGD([weight], lr=0.1)
    for _ in range(3):
        weight.grad = torch.ones(2, 3)
        optimizer.step()
    watch = optimizer._plans._plans[0].watch
    found = watch.grads(optimizer.state, optimizer.param_groups[0]["params"])
    before = weight.detach().clone()
    for grads in ([torch.ones(2, 3)], list(found)):
        with pytest.raises(ValueError, match="grads: expected the list that grads\\(\\) has just given"):
            watch.prox_sgd_step_(grads, 0.1, 0.1, False)
    with pytest.raises(ValueError, match="the plan is of another step's state"):
        watch.rmda_step_(found, 0.1, 0.1, False)
    assert torch.equal(weight.detach(), before)
    assert watch.prox_sgd_step_(found, 0.1, 0.1, False)
    with pytest.raises(ValueError, match="has just given"):
        watch.prox_sgd_step_(found, 0.1, 0.1, False)


@pytest.mark.parametrize("name", ["RMDA, no decay", "RAMDA", "ProxAdamW", "ProxSGD"])
def test_backends_take_planned_steps(backend: Any, name: str, no_plans: Callable[[bool], None]) -> None:
    def weights() -> list[Tensor]:
        params = [nn.Parameter(torch.linspace(-1, 1, 12, device=backend.device).view(4, 3))]
        params.append(nn.Parameter(torch.linspace(-1, 1, 10, device=backend.device).view(5, 2).bfloat16()))
        optimizer = OPTIMIZERS[name]([{"params": params, "penalty": sa.GroupLasso(1e-2, by="input")}])
        for step in range(5):
            for param in params:
                param.grad = torch.cos(param.detach() * step)
            optimizer.step()
        return [*(param.detach() for param in params), *(optimizer.state[param]["step"] for param in params)]

    kept = weights()
    no_plans(True)
    assert all(torch.equal(a, b) for a, b in zip(kept, weights(), strict=True))


def gradients(kind: str, param: nn.Parameter) -> Tensor | None:
    grad = torch.linspace(-1, 1, param.numel()).view(param.shape)
    if kind == "strided":
        return grad.t().contiguous().t()
    if kind == "negative":
        return torch._neg_view(grad)
    if kind == "sparse":
        return grad.to_sparse()
    return None if kind == "none" else grad


@pytest.mark.parametrize("kind", ["strided", "negative", "none", "sparse", "dense"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_of_any_kind(name: str, kind: str, no_plans: Callable[[bool], None]) -> None:
    def weights() -> list[Tensor]:
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5, 2))]
        optimizer = OPTIMIZERS[name]([{"params": params, "penalty": sa.GroupLasso(1e-3, by="input")}])
        for step in range(6):
            params[0].grad = gradients(kind if step == 4 else "dense", params[0])
            params[1].grad = torch.ones(5, 2)
            if kind == "sparse" and step == 4:
                before = [param.detach().clone() for param in params]
                with pytest.raises(RuntimeError, match="sparse gradients"):
                    optimizer.step()
                assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))
            else:
                optimizer.step()
        return [param.detach() for param in params]

    kept = weights()
    no_plans(True)
    assert all(torch.equal(a, b) for a, b in zip(kept, weights(), strict=True))


def test_numbers_are_checked_in_every_step() -> None:
    model, optimizer = make("RMDA")
    for step in range(4):
        train(model, optimizer, step)
    optimizer.param_groups[0]["lr"] = float("nan")
    with pytest.raises(ValueError, match="lr: expected a finite number"):
        optimizer.step()


def test_plans_stay_out_of_copies_and_checkpoints() -> None:
    model, optimizer = make("RMDA")
    for step in range(4):
        train(model, optimizer, step)
    both = copy.deepcopy((model, optimizer))
    assert set(optimizer.state_dict()) == {"state", "param_groups"}
    train(*both, 4)
    train(model, optimizer, 4)
    assert all(torch.equal(a, b) for a, b in zip(snapshot(*both), snapshot(model, optimizer), strict=True))
