"""Steps of groups over several tensors: those of one tensor that holds them all."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import sparse_accel as sa

STEPS: dict[str, dict[str, Any]] = {
    "RMDA": {"lr": 0.3, "momentum": 0.4, "weight_decay": 0.01},
    "RAMDA": {"lr": 0.1, "momentum": 0.4, "weight_decay": 0.01},
    "ProxSGD": {"lr": 0.1, "rho": 0.3, "weight_decay": 0.01},
    "ProxAdamW": {"lr": 0.05},
}
each_optimizer = pytest.mark.parametrize("name", STEPS)
X = torch.zeros(2, 5)


def chain(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """Three layers, of which the second makes units of one width and reads those of another."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    return model.to(dtype)


def rows(tensors: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The groups of :func:`chain`, one a row, from tensors like its parameters; and what belongs to none."""
    w0, b0, scale, shift, w1, b1, w2, b2 = tensors
    first = torch.cat([w0, b0[:, None], scale[:, None], shift[:, None], w1.T], 1)
    return first, torch.cat([b1[:, None], w2.T], 1), b2


def set_grads(model: nn.Module, step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in model.parameters():
        param.grad = (scale * torch.randn(param.shape, generator=generator, dtype=torch.float64)).to(param.dtype)


def coupled(model: nn.Module) -> sa.CoupledGroups:
    return sa.coupled_groups(model, X.to(next(model.parameters()).dtype))


def strength_of(name: str) -> float:
    """A strength at which some groups of :func:`chain` become zero in a few steps."""
    model = chain()
    opt = getattr(sa, name)(sa.param_groups(model, sa.GroupLasso(0.0), coupled=coupled(model)), **STEPS[name])
    for step in range(4):
        set_grads(model, step)
        opt.step()
    return (0.9 if "MDA" in name else 0.15) * sa.max_strength(opt)


@each_optimizer
@pytest.mark.parametrize("flags", [{}, {"foreach": True}, {"foreach": False}])
@pytest.mark.parametrize("kind", [sa.GroupLasso, sa.GroupL0])
def test_steps_are_those_of_one_tensor(name: str, flags: dict[str, Any], kind: Any) -> None:
    model = chain()
    penalty = kind(strength_of(name) if kind is sa.GroupLasso else 0.5)
    opt = getattr(sa, name)(sa.param_groups(model, penalty, coupled=coupled(model)), **STEPS[name], **flags)
    whole = [nn.Parameter(part.detach().clone()) for part in rows(list(model.parameters()))]
    by_row = kind(penalty.strength, by="output")
    groups = [{"params": whole[:2], "penalty": by_row}, {"params": whole[2:]}]
    other = getattr(sa, name)(groups, **STEPS[name], **flags)
    zero = 0
    for step in range(12):
        set_grads(model, step)
        for param, grad in zip(whole, rows([param.grad for param in model.parameters()]), strict=True):
            param.grad = grad.clone()
        if step == 7 and hasattr(opt, "restart"):
            opt.restart()
            other.restart()
        opt.step()
        other.step()
        for got, expected in zip(rows(list(model.parameters())), whole, strict=True):
            assert torch.equal(got, expected)
        with opt.proximal_parameters(), other.proximal_parameters():
            assert opt.penalty_value() == pytest.approx(other.penalty_value(), rel=1e-12)
            for got, expected in zip(rows(list(model.parameters())), whole, strict=True):
                assert torch.equal(got, expected)
            zero += int((whole[0] == 0).all(1).sum())
    assert 0 < zero < 48 or kind is sa.GroupL0  # some groups are zero, some are not
    before = [param.detach().clone() for param in model.parameters()]
    opt.eval()
    opt.train()
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@each_optimizer
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31), powers=st.lists(st.integers(-6, 6), min_size=8, max_size=8), share=st.floats(0, 1))
def test_the_subproblem_is_solved(name: str, dtype: torch.dtype, seed: int, powers: list[int], share: float) -> None:
    """0 in P w - q + tau d||w||, from the state alone, in float64, for members over 12 orders of magnitude."""
    model = chain(dtype, seed)
    with torch.no_grad():
        for param, power in zip(model.parameters(), powers, strict=True):
            param.mul_(10.0**power)
        model[0].weight[0] = model[0].bias[0] = model[1].weight[0] = model[1].bias[0] = 0
        model[3].weight[:, 0] = 0  # a group that is zero
    numbers = {"lr": 1.0, "weight_decay": 0.0} | ({"momentum": 1.0} if "MDA" in name else {})
    if name == "ProxAdamW":
        numbers["eps"] = 1e-3
    groups = sa.param_groups(model, sa.GroupLasso(0.0), coupled=coupled(model))
    opt = getattr(sa, name)(groups, **numbers)
    set_grads(model, seed % 1000, 10.0 ** powers[0])
    opt.step()
    set_grads(model, seed % 1000 + 1, 10.0 ** powers[0])
    strength = share * sa.max_strength(opt)  # some groups become zero, some do not
    opt.param_groups[0]["penalty"] = sa.GroupLasso(strength)
    before = [param.detach().clone().double() for param in model.parameters()]
    opt.step()
    q, p, tau = subproblem(name, opt, before, list(model.parameters()))
    for points, metrics, weights in zip(rows(q)[:2], rows(p)[:2], rows(list(model.parameters()))[:2], strict=True):
        bounds = tau * strength * math.sqrt(points.shape[1])
        tol = 1e-6 if dtype == torch.float32 else 1e-12
        for point, metric, weight in zip(points, metrics, weights.detach().double(), strict=True):
            norm, length = float(weight.norm()), float(point.norm())
            if norm == 0:
                assert length <= bounds * (1 + tol)
            else:
                left = metric * weight - point + bounds * weight / norm
                assert float(left.norm()) <= tol * max(length, bounds)


def subproblem(name: str, opt: Any, before: list[Tensor], params: list[nn.Parameter]) -> tuple[Any, Any, float]:
    """q, P and the threshold of strength 1, from the state after the step."""
    states = [{key: value.double() for key, value in opt.state[param].items()} for param in params]
    t, ones = states[0]["step"], [torch.ones_like(value) for value in before]
    if name == "RMDA":
        return [state["point"] for state in states], ones, float(states[0]["alpha"] / t.sqrt())
    if name == "RAMDA":
        metrics = [state["square"].pow(1 / 3) + 1e-6 for state in states]
        points = [p * state["anchor"] - state["dual"] for p, state in zip(metrics, states, strict=True)]
        return points, metrics, float(states[0]["alpha"])
    if name == "ProxSGD":
        return [w - state["momentum_buffer"] for w, state in zip(before, states, strict=True)], ones, 1.0
    metrics = [(state["exp_avg_sq"] / (1 - 0.999**t)).sqrt() + 1e-3 for state in states]
    means = [state["exp_avg"] / (1 - 0.9**t) for state in states]
    return [p * w - m for p, w, m in zip(metrics, before, means, strict=True)], metrics, 1.0


@each_optimizer
def test_a_resumed_run_gives_the_same_bits(name: str) -> None:
    def make(model: nn.Module) -> tuple[Any, Any]:
        penalty = sa.GroupLasso(target=0.5, ramp=12)
        opt = getattr(sa, name)(sa.param_groups(model, penalty, coupled=coupled(model)), **STEPS[name])
        return opt, sa.lr_scheduler.MultiStageLR(opt, [3, 6], gamma=0.5)

    def train(model: nn.Module, opt: Any, scheduler: Any, steps: range) -> None:
        for step in steps:
            set_grads(model, step)
            opt.step()
            if step % 3 == 2:
                scheduler.step()

    model = chain(torch.float32)
    opt, scheduler = make(model)
    train(model, opt, scheduler, range(10))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "opt": opt.state_dict(), "scheduler": scheduler.state_dict()}, file)
    train(model, opt, scheduler, range(10, 24))
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again = chain(torch.float32, seed=9)
    resumed, schedule = make(again)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["opt"])
    schedule.load_state_dict(saved["scheduler"])
    train(again, resumed, schedule, range(10, 24))
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
        for key, value in opt.state[one].items():
            assert torch.equal(value, resumed.state[two][key])
    assert opt.param_groups[0]["penalty"] == resumed.param_groups[0]["penalty"]
    assert opt.param_groups[0]["penalty"]["strength"] > 0


@pytest.mark.parametrize("name", ["RMDA", "RAMDA"])
def test_a_target_is_hit(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 10)
    y = torch.sin(x @ torch.randn(10, 3))
    model = nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 3))
    groups = sa.coupled_groups(model, x)
    opt = getattr(sa, name)(
        sa.param_groups(model, sa.GroupLasso(target=0.6, of="flops", ramp=30), coupled=groups, example=x),
        lr=0.05, momentum=0.5,
    )  # fmt: skip
    for _ in range(100):
        opt.zero_grad()
        (model(x) - y).square().mean().backward()
        opt.step()
    opt.finalize_()
    zero = [width.zero_units(dict(model.named_parameters())) for width in groups]
    flops = [(10 + 20, 40), (3, 20)]  # of a unit: the second layer's weights are the first width's
    share = sum(each * int(own.sum()) for (each, _), own in zip(flops, zero, strict=True)) / (30 * 40 + 3 * 20)
    assert share == pytest.approx(0.6, abs=0.03)
    largest = sa.max_strength(opt)
    with pytest.raises(ValueError, match="gradients of coupled groups vanish"):
        sa.max_strength(opt, lambda: None)
    opt.param_groups[0]["penalty"] = sa.GroupLasso(1.001 * largest)
    with opt.proximal_parameters():
        assert sa.sparsity(model, groups).group_sparsity == 1.0
    opt.param_groups[0]["penalty"] = sa.GroupLasso(0.99 * largest)
    with opt.proximal_parameters():
        assert sa.sparsity(model, groups).zero_groups == groups.units - 1


@each_optimizer
def test_mixed_precision(name: str) -> None:
    """Weights in bfloat16, norms in float32; an overflow changes nothing."""
    model = chain(torch.float32)
    for layer in (model[0], model[3], model[5]):
        layer.to(torch.bfloat16)
    groups = coupled(chain(torch.float32))
    opt = getattr(sa, name)(sa.param_groups(model, sa.GroupLasso(0.1), coupled=groups), **STEPS[name])
    for step in range(3):
        set_grads(model, step)
        opt.step()
    assert {param.dtype for param in model.parameters()} == {torch.bfloat16, torch.float32}
    tensors = {key for state in opt.state.values() for key, value in state.items() if value.dim()}
    assert all(opt.state[param][key].dtype == torch.float32 for param in opt.state for key in tensors)
    before = copy.deepcopy([list(model.parameters()), opt.state_dict()["state"]])
    opt.grad_scale, opt.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    set_grads(model, 9)
    opt.step()
    after = [list(model.parameters()), opt.state_dict()["state"]]
    assert all(torch.equal(one, two) for one, two in zip(before[0], after[0], strict=True))
    for one, two in zip(before[1].values(), after[1].values(), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)


class _NoReading(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a step reads a tensor on the host"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["RMDA", "RAMDA"])
def test_state_in_bfloat16(name: str) -> None:
    model = chain(torch.float32)
    groups = sa.param_groups(model, sa.GroupLasso(0.1), coupled=coupled(model))
    opt = getattr(sa, name)(groups, **STEPS[name], state_dtype=torch.bfloat16)
    wide = chain(torch.float32)
    other = getattr(sa, name)(sa.param_groups(wide, sa.GroupLasso(0.1), coupled=coupled(wide)), **STEPS[name])
    for step in range(4):
        for net, own in ((model, opt), (wide, other)):
            set_grads(net, step)
            own.step()
    assert {value.dtype for state in opt.state.values() for value in state.values() if value.dim()} == {torch.bfloat16}
    opt.finalize_()
    other.finalize_()
    for one, two in zip(model.parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0.05, atol=0.05)


@each_optimizer
def test_a_step_does_not_wait_for_the_device(name: str) -> None:
    model = chain(torch.float32)
    opt = getattr(sa, name)(sa.param_groups(model, sa.GroupLasso(0.1), coupled=coupled(model)), **STEPS[name])
    with _NoReading():
        for step in range(3):
            set_grads(model, step)
            opt.step()


@pytest.mark.parametrize("name", ["RMDA", "RAMDA"])
def test_state_made_ahead_leaves_the_weights(name: str) -> None:
    """torch.distributed.checkpoint takes a step with lr 0 before it loads."""
    model = chain(torch.float32)
    before = copy.deepcopy(list(model.parameters()))
    opt = getattr(sa, name)(sa.param_groups(model, sa.GroupLasso(0.1), coupled=coupled(model)), lr=0.0, momentum=0.3)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    opt.step()
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))
    assert all(opt.state[param]["step"] == 1 for param in model.parameters())


def test_what_is_refused_changes_nothing() -> None:
    model = chain(torch.float32)
    groups = coupled(model)
    before = copy.deepcopy(model.state_dict())
    opt = sa.RMDA(sa.param_groups(model, sa.GroupLasso(0.1), coupled=groups))
    set_grads(model, 0)
    model[3].weight.grad = None
    with pytest.raises(RuntimeError, match=r"coupled: 0: the parameter 3.weight has no gradient, but 0.weight"):
        opt.step()
    assert not opt.state
    for param in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
        param.grad = None
    opt.step()  # of the other width alone
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[5].weight, before["5.weight"])
    for wrong, words in [
        (sa.L1(0.1), r"expected GroupLasso \(without l2\) or GroupL0"),
        (sa.GroupLasso(0.1, by="element"), r"expected GroupLasso \(without l2\) or GroupL0"),
        (sa.GroupLasso(0.1, l2=0.1), r"expected GroupLasso \(without l2\) or GroupL0"),
        (sa.NonNegative(), r"expected GroupLasso \(without l2\) or GroupL0"),
    ]:
        with pytest.raises(ValueError, match=words):
            sa.RMDA(sa.param_groups(model, wrong, coupled=groups))
    with pytest.raises(ValueError, match="expected differentiable=False"):
        sa.RMDA(sa.param_groups(model, sa.GroupLasso(0.1), coupled=groups), differentiable=True)
    with pytest.raises(ValueError, match="SPPAM"):
        sa.SPPAM(sa.param_groups(model, sa.GroupLasso(0.1), coupled=groups))
    model[0].weight._fsdp_flattened = True
    with pytest.raises(ValueError, match="expected parameters of their own shape, got a flat one"):
        sa.RMDA(sa.param_groups(model, sa.GroupLasso(0.1), coupled=groups))
    other = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match=r"0\.weight of shape \(3, 5\): expected 1 of 3 entries for each of 4 units"):
        sa.param_groups(other, sa.GroupLasso(0.1), coupled=groups)
    with pytest.raises(ValueError, match=r"has no parameter '0\.weight'"):
        sa.param_groups(other[3], sa.GroupLasso(0.1), coupled=groups)
    with pytest.raises(TypeError, match="coupled: expected what"):
        sa.param_groups(model, sa.GroupLasso(0.1), coupled=True)  # type: ignore[arg-type]
