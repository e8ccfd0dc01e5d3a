"""Automatic mixed precision: scaled gradients, and no state that advances on an overflow."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from optim_infos import OURS, each_info, make_model, set_grads

import sparse_accel as sa


def bits(opt: torch.optim.Optimizer) -> list[torch.Tensor]:
    values = [value for state in opt.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    return [value.clone() for value in values] + [p.detach().clone() for g in opt.param_groups for p in g["params"]]


def make(info: Any, **flags: Any) -> tuple[torch.nn.Module, Any]:
    model = make_model()
    return model, info.optim_cls(sa.param_groups(model, sa.GroupLasso(1e-3)), lr=0.05, **flags)


@each_info(OURS)
@pytest.mark.parametrize(
    "flags",
    [{}, {"fused": True, "weight_decay": 0.3}, {"foreach": True}, {"foreach": False, "weight_decay": 0.3}],
    ids=str,
)
def test_grad_scaler(info: Any, flags: dict[str, Any]) -> None:
    plain, scaled = make(info, **flags), make(info, **flags)
    scaler = torch.amp.GradScaler(device="cpu", init_scale=1024.0, growth_interval=2)
    inputs = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for step in range(6):
        for model, opt in (plain, scaled):
            opt.zero_grad()
            loss = model(inputs).square().mean()
            if opt is plain[1]:
                loss.backward()
                if step != 3:
                    opt.step()
                continue
            scaler.scale(loss).backward()
            if step == 3:  # an overflow: this step is left out
                next(model.parameters()).grad[0] = float("inf")
                before = bits(opt)
            scaler.step(opt)
            scaler.update()
            if step == 3:
                assert all(torch.equal(one, two) for one, two in zip(before, bits(opt), strict=True))
    assert scaler.get_scale() == 1024.0 * 2 / 2 * 2
    for one, two in zip(plain[0].parameters(), scaled[0].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=2e-5, atol=1e-6)


@each_info(OURS)
def test_gradients_unscaled_first(info: Any) -> None:
    """unscale_ before the step, to clip: the scale is not applied twice."""
    plain, scaled = make(info, fused=True), make(info, fused=True)
    scaler = torch.amp.GradScaler(device="cpu", init_scale=256.0)
    inputs = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        for model, opt in (plain, scaled):
            opt.zero_grad()
            loss = model(inputs).square().mean()
            (loss if opt is plain[1] else scaler.scale(loss)).backward()
            if opt is scaled[1]:
                scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            if opt is plain[1]:
                opt.step()
            else:
                scaler.step(opt)
                scaler.update()
    for one, two in zip(plain[0].parameters(), scaled[0].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=2e-5, atol=1e-6)


@each_info(OURS)
def test_which_implementations_take_the_scale(info: Any) -> None:
    takes = {
        flag: make(info, **flags)[1]._step_supports_amp_scaling
        for flag, flags in (
            ("default", {}),
            ("fused", {"fused": True}),
            ("foreach", {"foreach": True}),
            ("loop", {"fused": False}),
        )
    }
    assert takes == {"default": True, "fused": True, "foreach": False, "loop": False}
    _, opt = make(info, fused=True)
    assert copy.deepcopy(opt)._step_supports_amp_scaling


@each_info(OURS)
def test_found_inf_keeps_every_bit(info: Any) -> None:
    model, opt = make(info, fused=True)
    for step in range(2):
        set_grads(model.parameters(), step)
        opt.step()
    for bad in (float("inf"), float("nan")):
        before = bits(opt)
        set_grads(model.parameters(), 9)
        for parameter in model.parameters():
            parameter.grad[0] = bad
        opt.grad_scale, opt.found_inf = torch.tensor(4.0), torch.tensor(1.0)
        opt.step()
        assert all(torch.equal(one, two) for one, two in zip(before, bits(opt), strict=True))
    opt.found_inf = torch.tensor(0.0)
    set_grads(model.parameters(), 2)
    opt.step()
    assert all(state["step"].item() == 3 for state in opt.state.values())


@each_info(OURS)
def test_first_step_skipped(info: Any) -> None:
    model, opt = make(info, fused=True)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    set_grads(model.parameters())
    opt.grad_scale, opt.found_inf = torch.tensor(1.0), torch.tensor(1.0)
    opt.step()
    for one, two in zip(before, model.parameters(), strict=True):
        assert torch.equal(one, two)
    with opt.proximal_parameters():
        for one, two in zip(before, model.parameters(), strict=True):
            assert torch.equal(one, two)
