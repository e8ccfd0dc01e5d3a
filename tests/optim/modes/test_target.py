"""Strengths found while training: the share of zero groups comes out as it was asked for."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_accel as sa
from sparse_accel.groups.costs import multiplications
from sparse_accel.optim.common.critical import critical_strengths
from sparse_accel.optim.common.target import Critical, bracket, eased, is_due, moved, scheduled_share

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "RMDA": (sa.RMDA, {"lr": 1.0, "momentum": 0.1}),
    "RAMDA": (sa.RAMDA, {"lr": 0.02, "momentum": 0.1}),
    "ProxSGD": (sa.ProxSGD, {"lr": 0.5}),
    "ProxAdamW": (sa.ProxAdamW, {"lr": 1e-2}),
}
WHOLE = ("RMDA", "RAMDA")  # the share is exact in every proximal iterate that follows a look


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(512, 32, generator=generator)
    return x, (x[:, :8] @ torch.randn(8, 4, generator=generator)).argmax(1)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 4))


def make(kind: str, model: nn.Module, penalty: sa.Penalty, **options: Any) -> Any:
    optimizer, own = KINDS[kind]
    return optimizer(sa.param_groups(model, penalty, **options), **own)


def train(model: nn.Module, opt: Any, first: int, last: int) -> None:
    x, y = data()
    for step in range(first, last):
        if step in (400, 500):
            for group in opt.param_groups:
                group["lr"] *= 0.1
            if hasattr(opt, "restart"):
                opt.restart()
        rows = torch.randint(0, len(x), (128,), generator=torch.Generator().manual_seed(step))
        opt.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        opt.step()


def strength(opt: Any) -> float:
    (found,) = {group["penalty"]["strength"] for group in opt.param_groups if group["penalty"]}
    return found


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("by, target", [("input", 0.6), ("output", 0.3), ("input", 0.85), ("element", 0.9)])
def test_the_share_is_hit(kind: str, by: str, target: float) -> None:
    model = net()
    opt = make(kind, model, sa.GroupLasso(target=target, by=by, ramp=250))
    train(model, opt, 0, 601)
    opt.finalize_()
    report = sa.sparsity(model, by=by)
    assert abs(report.group_sparsity - target) <= max(0.01, 1.6 / report.groups)
    x, y = data()
    assert (model(x).argmax(1) == y).float().mean() > 0.6  # of 4 classes


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_approaches_it(kind: str) -> None:
    model = net()
    opt = make(kind, model, sa.GroupLasso(target=0.5, ramp=60))
    train(model, opt, 0, 601)
    opt.finalize_()
    assert abs(sa.sparsity(model).group_sparsity - 0.5) <= (0.01 if kind in WHOLE else 0.03)
    assert strength(opt) > 0


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("of", ["params", "flops"])
def test_shares_of_parameters_and_multiplications(kind: str, of: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
    )
    x = torch.randn(64, 1, 10, 10)
    y = (x[:, 0, 3, 3] > 0).long() + 2 * (x[:, 0, 6, 6] > 0).long()
    opt = make(kind, model, sa.GroupLasso(target=0.5, ramp=60, of=of), example=x[:1])
    for _ in range(140):
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
    opt.finalize_()
    weights = {"params": [1, 1, 1], "flops": [64, 9, 1]}[of]  # positions of the outputs: 8 x 8, 3 x 3, 1
    layers = sa.sparsity(model).layers
    zero = sum(layer.in_zero_groups * weight for layer, weight in zip(layers, weights, strict=True))
    total = sum(layer.numel * weight for layer, weight in zip(layers, weights, strict=True))
    largest = max(layer.numel // layer.groups * weight for layer, weight in zip(layers, weights, strict=True))
    assert abs(zero / total - 0.5) <= 0.01 + largest / total / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["file", "eval mode", "pickle"])
def test_a_resumed_run_has_the_same_bits(kind: str, way: str) -> None:
    penalty = sa.GroupLasso(target=0.5, ramp=60)
    straight = net()
    train(straight, one := make(kind, straight, penalty), 0, 75)
    model = net()
    opt = make(kind, model, penalty)
    train(model, opt, 0, 37)  # between two looks
    if way == "pickle":
        model, opt = pickle.loads(pickle.dumps((model, opt)))
    else:
        if way == "eval mode":
            opt.eval()
        buffer = io.BytesIO()
        torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, buffer)
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)
        model = net(1)
        opt = make(kind, model, sa.GroupLasso(target=0.2))
        model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["opt"])
        opt.train()
    train(model, opt, 37, 75)
    assert strength(opt) == strength(one) > 0
    for p, q in zip(model.parameters(), straight.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_critical_strengths_are_those_of_the_step() -> None:
    # Just below the k-th of them one group fewer is zero than just above.
    for kind in WHOLE:
        model = net()
        opt = make(kind, model, sa.GroupLasso(1e-3))
        train(model, opt, 0, 30)
        values = (
            torch.cat([one.strengths for group in opt.param_groups for one in critical_strengths(opt, group)])
            .sort()
            .values
        )
        for k in (1, 20, 77, len(values)):
            for factor, expected in ((1 - 1e-5, k - 1), (1 + 1e-5, k)):
                for group in opt.param_groups[:1]:
                    group["penalty"] = sa.GroupLasso(float(values[k - 1]) * factor)
                with opt.proximal_parameters():
                    assert sa.sparsity(model).zero_groups == expected, (kind, k, factor)


@pytest.mark.parametrize("kind", KINDS)
def test_max_strength_after_some_steps(kind: str) -> None:
    model = net()
    opt = make(kind, model, sa.GroupLasso(1e-3))
    with pytest.raises(ValueError, match="after a step"):
        sa.max_strength(opt)
    train(model, opt, 0, 5)
    state = copy.deepcopy(opt.state_dict()["state"])
    most = sa.max_strength(opt)
    torch.testing.assert_close(opt.state_dict()["state"], state, rtol=0, atol=0)
    for factor, everything in ((0.999, False), (1.001, True)):
        for group in opt.param_groups:
            if group["penalty"]:
                group["penalty"] = sa.GroupLasso(most * factor)
        other, twin = copy.deepcopy((model, opt))
        if kind in WHOLE:
            twin.finalize_()
        else:
            with torch.no_grad():  # gradients under which the moments stay as they are
                for p in other.parameters():
                    state = twin.state[p]
                    p.grad = state["momentum_buffer"].clone() if kind == "ProxSGD" else p.grad
            if kind == "ProxAdamW":
                continue
            twin.step()
        assert (sa.sparsity(other).group_sparsity == 1.0) == everything


def test_max_strength_at_zero_is_the_end_of_the_path() -> None:
    # Least squares: zero is the minimizer from there on, and not below (proximal gradient descent to the minimum).
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 8, generator=generator), torch.randn(50, 3, generator=generator)
    layer = nn.Linear(8, 3)
    with torch.no_grad():
        layer.bias.copy_(y.mean(0))
    layer.bias.requires_grad_(False)
    opt = sa.ProxSGD(sa.param_groups(layer, sa.GroupLasso(0.0)), lr=0.5, rho=1.0)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = (layer(x) - y).square().mean() / 2
        loss.backward()
        return loss

    closure()
    weight, grad = layer.weight.detach().clone(), layer.weight.grad.clone()
    most = sa.max_strength(opt, closure)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.weight.grad, grad)
    expected = max((x.T @ (layer.bias.detach() - y) / 150).norm(dim=1) / 3**0.5)
    assert most == pytest.approx(float(expected), rel=1e-5)
    for factor, zero in ((1.01, True), (0.95, False)):
        opt.param_groups[0]["penalty"] = sa.GroupLasso(most * factor)
        for _ in range(300):
            opt.step(closure)
        assert bool(layer.weight.eq(0).all()) == zero


def test_refusals() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(TypeError, match="expected one of this package, got SGD"):
        sa.max_strength(torch.optim.SGD([weight], lr=0.1))
    for penalty in (None, sa.GroupL0(1.0)):
        with pytest.raises(ValueError, match="expected penalties GroupLasso or L1"):
            sa.max_strength(sa.RMDA([weight], penalty=penalty))
    with pytest.raises(ValueError, match="target and constraints are not supported by SPPAM"):
        sa.SPPAM([weight], penalty=sa.GroupLasso(target=0.5))
    with pytest.raises(ValueError, match=r"of='flops': expected an entry 'costs'.*param_groups\(\.\.\., example"):
        sa.RMDA([weight], penalty=sa.GroupLasso(target=0.5, of="flops"))
    with pytest.raises(ValueError, match="example: expected the model's input"):
        sa.param_groups(nn.Linear(2, 2), sa.GroupLasso(target=0.5, of="flops"))
    with pytest.raises(TypeError, match="example: expected a tensor, a tuple or a mapping, got int"):
        multiplications(nn.Linear(2, 2), 3)
    for options, text in (
        ({"target": 1.0}, r"target: expected a number in \[0, 1\)"),
        ({"target": 0.5, "of": "macs"}, "of: expected one of 'groups', 'params', 'flops', got 'macs'"),
        ({"target": 0.5, "ramp": -1}, "ramp: expected a number of steps >= 0"),
        ({}, "strength: expected a finite number >= 0"),
    ):
        with pytest.raises(ValueError, match=text):
            sa.GroupLasso(**options)


def test_plain_values_and_back() -> None:
    from sparse_accel.penalties import penalty_from_plain

    penalty = sa.GroupLasso(0.1, by="output", target=0.4, of="params", ramp=7)
    assert penalty_from_plain(penalty.to_plain()) == penalty
    assert repr(penalty) == "GroupLasso(strength=0.1, by='output', target=0.4, of='params', ramp=7)"
    assert sa.GroupLasso(1e-4).to_plain() == {"name": "group_lasso", "strength": 1e-4, "by": "input"}


def test_interval_of_strengths() -> None:
    found = [Critical(torch.tensor([3.0, 1.0]), 2, 1.0), Critical(torch.tensor([2.0, 5.0, 0.0]), 4, 10.0)]
    assert bracket(found, 2.0, 0.6, "groups") == (2.0, 3.0, 0.6)
    assert bracket(found, 0.5, 0.0, "groups") == (0.0, 0.0, 0.2)
    assert bracket(found, 0.0, 6 / 16, "params") == (1.0, 2.0, 4 / 16)
    assert bracket(found, 9.0, 42 / 124, "flops") == (1.0, 2.0, 1.0)
    assert bracket(found, 9.0, 1.0, "groups")[:2] == (2.0, 3.0)  # one of the two of the first weight stays
    assert moved(2.5, 2.0, 3.0) == 2.5
    assert 2.0 < moved(1.0, 2.0, 3.0) < 2.1
    assert 2.9 < moved(7.0, 2.0, 3.0) < 3.0
    assert moved(1.0, 2.0, math.inf) > 2.0
    assert 1.0 < eased(1.0, 9.0, 900.0, 0.5, 100) <= 1.2
    assert eased(1.0, 0.1, 0.1, -0.01, 100) == pytest.approx(math.exp(-0.04))
    assert not any(is_due(step) for step in range(101, 110))
    assert [scheduled_share(0.5, 10, step) for step in (0, 10, 99)] == [0.0, 0.5, 0.5]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of", ["groups", "params", "flops"])
def test_a_missed_target_is_told(kind: str, of: str) -> None:
    model = net()
    example = data()[0][:2] if of == "flops" else None
    opt = make(kind, model, sa.GroupLasso(target=0.5, of=of, ramp=1000), example=example)
    train(model, opt, 0, 25)
    with pytest.warns(UserWarning, match=rf"target=0\.5, of='{of}'\): .* % are zero after 25 steps \(ramp=1000\)"):
        opt.finalize_()
    if kind in WHOLE and of == "groups":
        model = net()
        opt = make(kind, model, sa.GroupLasso(target=0.5, ramp=20))
        train(model, opt, 0, 101)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            opt.finalize_()


def test_frozen_layers_and_layers_without_gradients_do_not_take_part() -> None:
    model = net()
    model[0].weight.requires_grad_(False)
    opt = make("RMDA", model, sa.GroupLasso(target=0.5, ramp=20))
    train(model, opt, 0, 60)
    opt.finalize_()
    layers = sa.sparsity(model).layers
    assert layers[0].zero_groups == 0
    assert sum(layer.zero_groups for layer in layers[1:]) == 52  # of 64 + 40


def test_compact_keeps_the_strength_and_drops_the_target() -> None:
    # Of what is left nothing more has to go.
    model = net()
    opt = make("RMDA", model, sa.GroupLasso(target=0.5, ramp=20, of="flops"), example=torch.zeros(1, 32))
    train(model, opt, 0, 60)
    opt.finalize_()
    small = sa.compact(model, torch.zeros(2, 32), optimizer=opt)
    penalties = [group["penalty"] for group in small.optimizer.param_groups if group["penalty"]]
    assert penalties == [sa.GroupLasso(strength(opt)).to_plain()]
    assert not any("costs" in group for group in small.optimizer.param_groups)
    train(small.model, small.optimizer, 60, 75)
