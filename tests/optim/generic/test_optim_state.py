"""Checkpoints, copies and hooks of the optimizers: resuming gives the same bits as not having stopped."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_infos import OURS, each_case, each_info, make_model, set_grads
from torch.nn import Parameter

import sparse_accel as sa


def saved_and_loaded(value: Any) -> Any:
    """Through torch.save and the loader that accepts tensors and plain values only."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same_state(one: torch.optim.Optimizer, two: torch.optim.Optimizer) -> None:
    first, second = one.state_dict(), two.state_dict()
    assert first["param_groups"] == second["param_groups"]
    assert first["state"].keys() == second["state"].keys()
    for key, state in first["state"].items():
        assert state.keys() == second["state"][key].keys()
        for name, value in state.items():
            other = second["state"][key][name]
            if isinstance(value, torch.Tensor):
                assert value.dtype == other.dtype
                assert torch.equal(value, other), name
            else:
                assert value == other


def run(model: torch.nn.Module, opt: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        set_grads(model.parameters(), step)
        opt.step()


@each_case()
def test_resume_is_bitwise(optimizer: Any, kwargs: dict[str, Any]) -> None:
    model = make_model()
    opt = optimizer(model.parameters(), **kwargs)
    run(model, opt, range(3))
    resumed = copy.deepcopy(model)
    other = optimizer(resumed.parameters(), **kwargs)
    other.load_state_dict(saved_and_loaded(opt.state_dict()))
    assert_same_state(opt, other)
    run(model, opt, range(3, 6))
    run(resumed, other, range(3, 6))
    assert_same_state(opt, other)
    for one, two in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


STATE = {
    "RMDA": {"point", "anchor"},
    "ProxSGD": {"momentum_buffer"},
    "RAMDA": {"dual", "square", "anchor"},
    "ProxAdamW": {"exp_avg", "exp_avg_sq"},
}


@each_info(OURS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_resume_is_bitwise_in_every_dtype(info: Any, dtype: torch.dtype) -> None:
    model = make_model(dtype)
    opt = info.optim_cls(sa.param_groups(model, sa.GroupLasso(1e-3)), lr=0.05)
    run(model, opt, range(3))
    resumed = copy.deepcopy(model)
    other = info.optim_cls(sa.param_groups(resumed, sa.GroupLasso(1e-3)), lr=0.05)
    other.load_state_dict(saved_and_loaded(opt.state_dict()))
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for state in other.state.values():
        assert state["step"].dtype == torch.float32
        if info.name in ("RMDA", "RAMDA"):
            assert state["alpha"].dtype == torch.float64
        names = STATE[info.name]
        assert set(state) - {"step", "alpha"} == names
        assert all(state[name].dtype == expected for name in names)
    run(model, opt, range(3, 6))
    run(resumed, other, range(3, 6))
    assert_same_state(opt, other)
    for one, two in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


EVENTS = ["step", "step", "step", "missing", "restart", "lr", "penalty", "proximal", "ramp"]


def happen(event: str, model: torch.nn.Module, opt: Any, number: int) -> None:
    set_grads(model.parameters(), number)
    if event == "missing":
        next(model.parameters()).grad = None
    if event in ("step", "missing"):
        opt.step()
    elif event == "restart" and isinstance(opt, sa.RMDA):
        opt.restart()
    elif event == "ramp" and isinstance(opt, sa.RMDA):
        opt.param_groups[0]["momentum_ramp"] = 0
    elif event == "lr":
        opt.param_groups[0]["lr"] *= 0.7
    elif event == "penalty":
        opt.param_groups[0]["penalty"] = sa.GroupL0(1e-3, by="kernel")
    elif event == "proximal":
        with opt.proximal_parameters():
            pass


@each_info(OURS)
@settings(max_examples=25, deadline=None)
@given(events=st.lists(st.sampled_from(EVENTS), min_size=1, max_size=12), at=st.integers(0, 11))
def test_any_history_resumes_bitwise(info: Any, events: list[str], at: int) -> None:
    models = [make_model(torch.bfloat16), make_model(torch.bfloat16)]
    opts = [info.optim_cls(sa.param_groups(model, sa.GroupLasso(1e-2)), lr=0.1) for model in models]
    for number, event in enumerate(events):
        happen(event, models[0], opts[0], number)
        if number < at:
            happen(event, models[1], opts[1], number)
        elif number == at:
            models[1].load_state_dict(saved_and_loaded(models[0].state_dict()))
            opts[1] = info.optim_cls(sa.param_groups(models[1], sa.L1(3.0)), lr=9.0)
            opts[1].load_state_dict(saved_and_loaded(opts[0].state_dict()))
        else:
            happen(event, models[1], opts[1], number)
    assert_same_state(opts[0], opts[1])
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_control_casts_its_state_down() -> None:
    """What load_state_dict is overridden for: torch's own casts float state to the parameters' dtype."""
    weight = Parameter(torch.ones(2, dtype=torch.bfloat16))
    opt = torch.optim.AdamW([weight])
    set_grads([weight])
    opt.step()
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][0]["exp_avg"] = saved["state"][0]["exp_avg"].float()
    opt.load_state_dict(saved)
    assert opt.state[weight]["exp_avg"].dtype == torch.bfloat16


@each_info(OURS)
def test_loading_copies(info: Any) -> None:
    models = [make_model(), make_model()]
    opts = [info.optim_cls(model.parameters()) for model in models]
    run(models[0], opts[0], range(2))
    opts[1].load_state_dict(opts[0].state_dict())
    before = copy.deepcopy(opts[0].state_dict())
    run(models[1], opts[1], range(2, 4))
    after = opts[0].state_dict()
    for key, state in before["state"].items():
        for name, value in state.items():
            assert torch.equal(value, after["state"][key][name])


@each_info(OURS)
def test_loading_into_another_dtype_and_memory_format(info: Any) -> None:
    model = make_model()
    opt = info.optim_cls(sa.param_groups(model, sa.GroupLasso(1e-3)), lr=0.05)
    run(model, opt, range(3))
    other_model = copy.deepcopy(model).double().to(memory_format=torch.channels_last)
    other = info.optim_cls(sa.param_groups(other_model, sa.GroupLasso(1e-3)), lr=0.05)
    other.load_state_dict(opt.state_dict())
    run(model, opt, range(3, 5))
    run(other_model, other, range(3, 5))
    for one, two in zip(model.parameters(), other_model.parameters(), strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-6)


@each_info(OURS)
def test_a_model_converted_between_steps(info: Any) -> None:
    model, converted = make_model(), make_model()
    opts = [info.optim_cls(sa.param_groups(m, sa.GroupLasso(1e-3)), lr=0.05) for m in (model, converted)]
    for m, opt in zip((model, converted), opts, strict=True):
        run(m, opt, range(2))
    converted.to(memory_format=torch.channels_last)
    converted.double()
    for m, opt in zip((model, converted), opts, strict=True):
        run(m, opt, range(2, 5))
    for one, two in zip(model.parameters(), converted.parameters(), strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-6)


@each_case()
def test_deepcopy_and_pickle(optimizer: Any, kwargs: dict[str, Any]) -> None:
    model = make_model()
    opt = optimizer(model.parameters(), **kwargs)
    run(model, opt, range(2))
    for twin in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert_same_state(opt, twin)
        params = [p for group in twin.param_groups for p in group["params"]]
        set_grads(params, 5)
        twin.step()
        assert not torch.equal(params[0], next(model.parameters()))
        assert not any(one is two for one, two in zip(params, model.parameters(), strict=True))


@each_info()
def test_deepcopy_keeps_public_attributes(info: Any) -> None:
    opt = info.optim_cls(make_model().parameters())
    public = {name for name in vars(opt) if not name.startswith("_")}
    assert public == {name for name in vars(copy.deepcopy(opt)) if not name.startswith("_")}


@each_info()
def test_older_checkpoints_load(info: Any) -> None:
    model = make_model()
    opt = info.optim_cls(model.parameters())
    run(model, opt, range(2))
    old = copy.deepcopy(opt.state_dict())
    removed = set(info.not_og_supported_flags)
    if info.optim_cls is not torch.optim.AdamW:
        removed |= {"penalty", "transposed", "conv_groups", "restart", "momentum_ramp"}
    for group in old["param_groups"]:
        for flag in removed:
            group.pop(flag, None)
    opt.load_state_dict(old)
    for group in opt.param_groups:
        assert removed - {"restart", "momentum_ramp"} <= set(group)
    run(model, opt, range(2, 4))


@each_info()
def test_steps_saved_as_numbers_load(info: Any) -> None:
    model = make_model()
    opt = info.optim_cls(model.parameters())
    run(model, opt, range(2))
    old = copy.deepcopy(opt.state_dict())
    for state in old["state"].values():
        for key in ("step", "alpha"):
            if key in state:
                state[key] = state[key].item()
    opt.load_state_dict(old)
    run(model, opt, range(2, 3))
    assert all(state["step"].item() == 3 for state in opt.state.values())


@each_info()
def test_from_named_to_unnamed_and_back(info: Any) -> None:
    model = make_model()
    named = info.optim_cls(model.named_parameters())
    unnamed = info.optim_cls(model.parameters())
    run(model, named, range(1))
    unnamed.load_state_dict(named.state_dict())
    assert "param_names" in unnamed.param_groups[0]
    named.load_state_dict(info.optim_cls(make_model().parameters()).state_dict())
    assert named.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]


@each_info()
def test_groups_that_do_not_match_are_refused(info: Any) -> None:
    opt = info.optim_cls([Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        opt.load_state_dict(info.optim_cls(two_groups()).state_dict())
    with pytest.raises(ValueError, match="doesn't match the size"):
        opt.load_state_dict(info.optim_cls([Parameter(torch.ones(2)), Parameter(torch.ones(2))]).state_dict())


def two_groups() -> list[dict[str, Any]]:
    return [{"params": [Parameter(torch.ones(2))]}, {"params": [Parameter(torch.ones(2))]}]


@each_info(OURS)
def test_state_is_plain(info: Any) -> None:
    """Tensors and plain values only, at any depth; a penalty is its name and numbers."""

    def check(value: Any) -> None:
        if isinstance(value, dict):
            for key, entry in value.items():
                check(key)
                check(entry)
        elif isinstance(value, (list, tuple)):
            for entry in value:
                check(entry)
        else:
            assert value is None or type(value) in (torch.Tensor, float, int, bool, str), type(value)

    model = make_model()
    opt = info.optim_cls(sa.param_groups(model, sa.GroupLasso(1e-3)), lr=0.05)
    run(model, opt, range(1))
    check(opt.state_dict())
    assert opt.param_groups[0]["penalty"] == {"name": "group_lasso", "strength": 1e-3, "by": "input"}
    assert opt.param_groups[1]["penalty"] is None


@each_info(OURS)
def test_state_of_another_shape_is_refused(info: Any) -> None:
    weight = Parameter(torch.ones(3, 4))
    opt = info.optim_cls([weight])
    set_grads([weight])
    opt.step()
    weight.data = torch.ones(2, 4)
    weight.grad = torch.ones(2, 4)
    with pytest.raises(RuntimeError, match=r"has shape \(3, 4\), its parameter \(2, 4\): prune with compact"):
        opt.step()


@each_info()
def test_step_hooks(info: Any) -> None:
    calls: list[str] = []
    weight = Parameter(torch.ones(2))
    opt = info.optim_cls([weight], lr=0.1)
    pre = opt.register_step_pre_hook(lambda *_: calls.append("pre"))
    post = opt.register_step_post_hook(lambda *_: calls.append("post"))
    set_grads([weight])
    opt.step()
    assert calls == ["pre", "post"]
    pre.remove()
    post.remove()
    opt.step()
    assert calls == ["pre", "post"]


@each_info()
def test_state_dict_hooks(info: Any) -> None:
    weight = Parameter(torch.ones(2))
    opt = info.optim_cls([weight], lr=0.1)
    calls: list[str] = []
    opt.register_state_dict_pre_hook(lambda _: calls.append("pre"))
    opt.register_state_dict_post_hook(lambda _, state: {**state, "extra": 1})
    assert opt.state_dict()["extra"] == 1
    assert calls == ["pre"]


@each_info()
def test_load_state_dict_hooks(info: Any) -> None:
    weight = Parameter(torch.ones(2))
    opt = info.optim_cls([weight], lr=0.1)
    set_grads([weight])
    opt.step()
    steps: list[float] = []

    def pre(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        changed = copy.deepcopy(state)
        changed["state"][0]["step"] += 5
        return changed

    opt.register_load_state_dict_pre_hook(pre)
    opt.register_load_state_dict_post_hook(lambda o: steps.append(o.state[weight]["step"].item()))
    opt.load_state_dict(opt.state_dict())
    assert steps == [6]


@each_info(OURS)
def test_a_failed_load_leaves_no_hook(info: Any) -> None:
    opt = info.optim_cls([Parameter(torch.ones(2))])
    with pytest.raises(ValueError):
        opt.load_state_dict({"state": {}, "param_groups": []})
    assert not opt._optimizer_load_state_dict_pre_hooks


@each_info(OURS)
def test_memory_of_a_step(info: Any) -> None:
    """State holds no more than the documented tensors: nothing of the parameter's size is kept beside them."""
    weight = Parameter(torch.ones(64, 64))
    opt = info.optim_cls([weight], penalty=sa.GroupLasso(1e-3))
    set_grads([weight])
    opt.step()
    kept = sum(value.numel() for value in opt.state[weight].values() if isinstance(value, torch.Tensor))
    scalars = 2 if info.name in ("RMDA", "RAMDA") else 1
    expected = len(STATE[info.name]) * 64 * 64 + scalars
    assert kept == expected
