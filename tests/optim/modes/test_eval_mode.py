"""optimizer.eval() and optimizer.train(): the proximal iterate for evaluation, and the training iterate back."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

import sparse_accel as sa

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "RMDA": (sa.RMDA, {"lr": 0.3, "momentum": 0.2}),
    "RMDA-foreach": (sa.RMDA, {"lr": 0.3, "momentum": 0.2, "foreach": True}),
    "RMDA-loop": (sa.RMDA, {"lr": 0.3, "momentum": 0.2, "fused": False}),
    "RMDA-c1": (sa.RMDA, {"lr": 0.3, "momentum": 1.0}),
    "RAMDA": (sa.RAMDA, {"lr": 0.1, "momentum": 0.2}),
    "RAMDA-foreach": (sa.RAMDA, {"lr": 0.1, "momentum": 0.2, "foreach": True}),
    "ProxSGD": (sa.ProxSGD, {"lr": 0.3}),
    "ProxAdamW": (sa.ProxAdamW, {"lr": 0.05}),
    "SPPAM": (sa.SPPAM, {"lr": 0.3, "momentum": 0.2, "averaging": 1, "tolerance": 0.1}),
}
APART = ("RMDA", "RMDA-foreach", "RMDA-loop", "RAMDA", "RAMDA-foreach", "SPPAM")  # of two different iterates
each = pytest.mark.parametrize("case", CASES)
each_apart = pytest.mark.parametrize("case", APART)


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).to(dtype)


def make(case: str, model: nn.Module, strength: float = 0.3) -> Any:
    kind, options = CASES[case]
    return kind(sa.param_groups(model, sa.GroupLasso(strength, by="input")), **options)


def closure(model: nn.Module, opt: Any, step: int) -> Any:
    x = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(step)).to(next(model.parameters()).dtype)

    def loss() -> Tensor:
        opt.zero_grad()
        value = model(x).square().mean()
        value.backward()
        return value

    return loss


def run(model: nn.Module, opt: Any, first: int, last: int) -> None:
    for step in range(first, last):
        opt.step(closure(model, opt, step))


def values(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def assert_same_state(opt: Any, before: dict[str, Any]) -> None:
    now = opt.state_dict()
    assert now["param_groups"] == before["param_groups"]
    torch.testing.assert_close(now["state"], before["state"], rtol=0, atol=0)


def trained(case: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, Any]:
    model = net(dtype)
    opt = make(case, model)
    run(model, opt, 0, 3)
    return model, opt


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_there_and_back(case: str, dtype: torch.dtype) -> None:
    if case == "SPPAM" and dtype == torch.bfloat16:
        dtype = torch.float32  # its inner solver cannot reach a tolerance there
    model, opt = trained(case, dtype)
    training = values(model)
    with opt.proximal_parameters():
        proximal = values(model)
    assert same(training, proximal) == (case not in APART)
    before = {id(p): set(state) for p, state in opt.state.items()}
    for _ in range(2):
        opt.eval()
        opt.eval()
        assert same(values(model), proximal)
        opt.zero_grad()
        opt.train()
        opt.train()
        assert same(values(model), training)
    assert {id(p): set(state) for p, state in opt.state.items()} == before
    straight_model, straight = trained(case, dtype)
    run(model, opt, 3, 5)
    run(straight_model, straight, 3, 5)
    assert same(values(model), values(straight_model))


@each
def test_step_in_eval_mode_is_refused_and_changes_nothing(case: str) -> None:
    model, opt = trained(case)
    opt.eval()
    now, state = values(model), copy.deepcopy(opt.state_dict())
    with pytest.raises(RuntimeError, match=r"step\(\) in eval mode.*call optimizer.train\(\) first"):
        opt.step(closure(model, opt, 3))
    assert same(values(model), now)
    assert_same_state(opt, state)


@each
@pytest.mark.parametrize("way", ["weights first", "optimizer first", "into eval mode", "pickle", "deepcopy"])
def test_saved_in_eval_mode_it_goes_on_with_the_same_bits(case: str, way: str, tmp_path: Path) -> None:
    straight_model, straight = trained(case)
    run(straight_model, straight, 3, 6)
    model, opt = trained(case)
    opt.eval()
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, tmp_path / "checkpoint")
    saved = torch.load(tmp_path / "checkpoint", weights_only=True)
    if way == "deepcopy":
        model, opt = copy.deepcopy((model, opt))
    elif way == "pickle":
        model, opt = pickle.loads(pickle.dumps((model, opt)))
    else:
        model = net()
        opt = make(case, model)
        if way == "into eval mode":
            run(model, opt, 0, 1)
            opt.eval()
        if way != "optimizer first":
            model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["opt"])
        if way == "optimizer first":
            model.load_state_dict(saved["model"])
    with pytest.raises(RuntimeError, match="eval mode"):
        opt.step(closure(model, opt, 3))
    opt.train()
    run(model, opt, 3, 6)
    assert same(values(model), values(straight_model))
    assert all("iterate" not in state for state in opt.state.values())


@each_apart
@pytest.mark.parametrize("weights", [True, False])
def test_a_state_of_training_loaded_in_eval_mode(case: str, weights: bool) -> None:
    # With the weights of the checkpoint: they stay. Without: those of training come back, as if eval() had not been.
    model, opt = trained(case)
    saved = copy.deepcopy((model.state_dict(), opt.state_dict()))
    run(model, opt, 3, 5)
    training = values(model)
    opt.eval()
    if weights:
        model.load_state_dict(saved[0])
    opt.load_state_dict(saved[1])
    assert same(values(model), list(saved[0].values()) if weights else training)
    assert all(group["train_mode"] for group in opt.param_groups)
    opt.step(closure(model, opt, 3))


@each_apart
def test_what_was_written_in_eval_mode_is_kept_with_a_warning(case: str) -> None:
    model, opt = trained(case)
    training = values(model)
    opt.eval()
    with torch.no_grad():
        model[0].weight.fill_(0.25)
    with pytest.warns(UserWarning, match=r"1 of 4 parameters \(the first of shape \(4, 2, 3, 3\)\) were written"):
        opt.train()
    assert same(values(model), [torch.full((4, 2, 3, 3), 0.25), *training[1:]])
    opt.step(closure(model, opt, 3))


@each_apart
def test_finalize_in_eval_mode_keeps_the_zeros(case: str) -> None:
    model, opt = trained(case)
    opt.eval()
    proximal = values(model)
    model[3].bias.data.fill_(0.0)  # not seen: finalize_ sets the optimizer's
    with torch.no_grad():
        model[3].weight.fill_(0.5)  # seen
    opt.finalize_()
    now = values(model)
    assert same(now[:2] + now[3:], proximal[:2] + proximal[3:])
    assert now[2].eq(0.5).all()
    opt.step(closure(model, opt, 3))  # in training mode again


@each
def test_inside_of_the_context(case: str) -> None:
    model, opt = trained(case)
    training = values(model)
    with opt.proximal_parameters():
        proximal = values(model)
        opt.eval()  # Trainer.evaluate() inside
        assert same(values(model), proximal)
        with pytest.raises(RuntimeError, match=r"train\(\) inside proximal_parameters"):
            opt.train()
    assert same(values(model), training)
    opt.eval()
    with opt.proximal_parameters():
        assert same(values(model), proximal)
    assert same(values(model), proximal)
    opt.train()
    assert same(values(model), training)


@each
def test_before_the_first_step_and_with_a_new_group(case: str) -> None:
    model = net()
    opt = make(case, model)
    start = values(model)
    opt.eval()
    opt.load_state_dict(opt.state_dict())  # accelerate's wrapper does on being made
    opt.add_param_group({"params": [("new", nn.Parameter(torch.ones(2)))], "penalty": None})
    assert [group["train_mode"] for group in opt.param_groups] == [False] * len(opt.param_groups)
    opt.train()
    assert same(values(model), start)
    run(model, opt, 0, 2)


def test_frozen_parameters_stay_and_come_back_when_frozen_meanwhile() -> None:
    model, opt = trained("RMDA")
    training = values(model)
    model[0].weight.requires_grad_(False)
    opt.eval()
    assert torch.equal(model[0].weight, training[0])
    model[3].weight.requires_grad_(False)
    opt.train()
    assert same(values(model), training)


def test_another_shape_is_refused_and_nothing_changes() -> None:
    model, opt = trained("RMDA")
    opt.eval()
    now = values(model)[:2]
    model[3].weight.data = torch.zeros(3, 5)
    with pytest.raises(RuntimeError, match=r"'iterate' has shape \(3, 16\), its parameter \(3, 5\)"):
        opt.train()
    assert same(values(model)[:2], now)


def test_an_error_of_eval_leaves_the_weights_of_training() -> None:
    model, opt = trained("RMDA")
    training = values(model)
    opt.state[model[3].weight]["point"] = torch.zeros(2, 2)
    with pytest.raises(RuntimeError, match="state 'point' has shape"):
        opt.eval()
    assert same(values(model), training)
    assert opt.param_groups[0]["train_mode"]


def test_states_from_before_the_modes() -> None:
    model, opt = trained("RMDA")
    old = copy.deepcopy(opt.state_dict())
    for group in old["param_groups"]:
        del group["train_mode"]
    opt.load_state_dict(old)
    run(model, opt, 3, 4)
    opt.eval()
    opt.train()


def test_a_state_of_eval_mode_without_its_weights_is_refused() -> None:
    _, opt = trained("RMDA")
    before = copy.deepcopy(opt.state_dict())
    opt.eval()
    saved = copy.deepcopy(opt.state_dict())
    opt.train()
    for state in saved["state"].values():
        del state["iterate"]
    with pytest.raises(RuntimeError, match="saved in eval mode, but its training weights did not come along"):
        opt.load_state_dict(saved)
    assert_same_state(opt, before)


@pytest.mark.parametrize("case, strength", [("RMDA", 0.08), ("RAMDA", 0.02)])
def test_compact_and_its_checkpoint_in_eval_mode(case: str, strength: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(16, 6)
    kind, options = CASES[case]
    opt = kind(sa.param_groups(model, sa.GroupLasso(strength, by="input")), **options)
    for _ in range(12):
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(16) % 3).backward()
        opt.step()
    opt.eval()
    dead = model[2].weight.eq(0).all(0)
    assert 0 < dead.sum() < 8
    small = sa.compact(model, x, optimizer=opt)
    opt.train()
    small.optimizer.train()
    kept = (~dead).nonzero()[:, 0]
    assert torch.equal(small.model[2].weight, model[2].weight[:, kept])
    assert torch.equal(small.model[0].weight, model[0].weight[kept])
    small.optimizer.eval()
    sa.save(small, tmp_path / "small")
    again = sa.load(tmp_path / "small", copy.deepcopy(model))
    loaded = sa.load_optimizer(tmp_path / "small", again, kind)
    assert same(values(again), values(small.model))
    loaded.train()
    small.optimizer.train()
    assert same(values(again), values(small.model))


def test_sharded_parameters_and_their_checkpoint(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import load, save
    from torch.distributed.checkpoint import state_dict as dcp
    from torch.distributed.fsdp import fully_shard

    if dist.is_initialized():
        pytest.skip("another test's process group is open")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))

        def start(strength: float = 0.3) -> tuple[nn.Sequential, Any]:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
            fully_shard(model, mesh=mesh)
            return model, sa.RMDA(sa.param_groups(model, sa.GroupLasso(strength, by="output")), lr=0.3, momentum=0.2)

        def steps(model: nn.Module, opt: Any, count: int) -> None:
            for _ in range(count):
                opt.zero_grad()
                model(torch.ones(4, 6)).square().mean().backward()
                opt.step()

        def full(model: nn.Module) -> list[Tensor]:
            return [parameter.full_tensor().detach().clone() for parameter in model.parameters()]

        model, opt = start()
        steps(model, opt, 3)
        training, x = full(model), torch.ones(4, 6)

        def output() -> Tensor:
            with torch.no_grad():
                return model(x).clone()

        before = output()
        opt.eval()
        proximal = full(model)
        assert not same(proximal, training)
        expected = functional.linear(functional.linear(x, *proximal[:2]).relu(), *proximal[2:])
        torch.testing.assert_close(output(), expected)  # not of what the root had gathered for the last one
        opt.train()
        assert torch.equal(output(), before)
        with opt.proximal_parameters():
            torch.testing.assert_close(output(), expected)
        assert torch.equal(output(), before)
        model.reshard()
        assert same(full(model), training)
        opt.eval()
        saved = dict(zip(("model", "opt"), dcp.get_state_dict(model, opt), strict=True))
        save(saved, checkpoint_id=str(tmp_path))
        for prepared in (False, True):
            other, fresh = start()
            if prepared:  # state of eval mode to load into
                steps(other, fresh, 1)
                fresh.eval()
            state = dict(zip(("model", "opt"), dcp.get_state_dict(other, fresh), strict=True))
            load(state, checkpoint_id=str(tmp_path))
            if not prepared:
                with pytest.raises(RuntimeError, match="training weights did not come along"):
                    dcp.set_state_dict(other, fresh, model_state_dict=state["model"], optim_state_dict=state["opt"])
                continue
            dcp.set_state_dict(other, fresh, model_state_dict=state["model"], optim_state_dict=state["opt"])
            fresh.train()
            assert same(full(other), training)
    finally:
        dist.destroy_process_group()
