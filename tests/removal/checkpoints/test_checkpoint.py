"""Checkpoints of compact models: the same bits from a fresh dense model, clear errors otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compact_cases import CASES
from compact_checks import assert_unchanged, snapshot, widths
from compact_models import LeNet, Mlp, ResNet, Tied, randomize, silent
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_accel.channels.call import run_model, tree_tensors
from sparse_accel.groups import param_groups
from sparse_accel.optim import RAMDA, RMDA, ProxAdamW, ProxSGD
from sparse_accel.penalties import GroupLasso
from sparse_accel.removal.checkpoint import CheckpointError, load, load_optimizer, save
from sparse_accel.removal.compact import CompactResult, compact


def compacted(name: str, **options: Any) -> CompactResult:
    model = randomize(CASES[name].build())
    CASES[name].plant(model)
    return compact(model, CASES[name].example(), **options)


def assert_same_bits(one: nn.Module, other: nn.Module, example: Any) -> None:
    with torch.no_grad():
        outputs = [list(tree_tensors(run_model(model, example))) for model in (one, other)]
    for a, b in zip(*outputs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name: str, tmp_path: Path) -> None:
    result = compacted(name)
    assert save(result, tmp_path / "out") == tmp_path / "out"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.safetensors", "plan.json"]
    fresh = randomize(CASES[name].build(), seed=9)
    before = snapshot(fresh)
    loaded = load(tmp_path / "out", fresh)
    assert_unchanged(fresh, before)
    assert repr(loaded) == repr(result.model)
    assert widths(loaded) == widths(result.model)
    assert_same_bits(loaded.eval(), result.model.eval(), CASES[name].example())
    assert {n: p.shape for n, p in loaded.named_parameters()} == {
        n: p.shape for n, p in result.model.named_parameters()
    }


def test_mode_trainability_and_device_are_the_given_models(tmp_path: Path) -> None:
    save(compacted("resnet"), tmp_path)
    fresh = ResNet().eval()
    fresh.stem.weight.requires_grad_(False)
    loaded = load(tmp_path, fresh)
    assert not loaded.training
    assert not loaded.stem.weight.requires_grad
    assert loaded.fc.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_the_saved_one(dtype: torch.dtype, tmp_path: Path) -> None:
    model = randomize(Mlp()).to(dtype)
    CASES["mlp"].plant(model)
    example = CASES["mlp"].example().to(dtype)
    result = compact(model, example)
    save(result, tmp_path)
    loaded = load(tmp_path, Mlp())
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert_same_bits(loaded, result.model, example)


def test_memory_order_is_kept(tmp_path: Path) -> None:
    model = randomize(ResNet()).to(memory_format=torch.channels_last)
    CASES["resnet"].plant(model)
    example = CASES["resnet"].example().to(memory_format=torch.channels_last)
    result = compact(model, example)
    save(result, tmp_path)
    loaded = load(tmp_path, ResNet())
    assert [p.stride() for p in loaded.parameters()] == [p.stride() for p in result.model.parameters()]
    assert_same_bits(loaded.eval(), result.model.eval(), example)


def test_created_biases_come_back(tmp_path: Path) -> None:

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3, bias=False))

    model = randomize(build())
    silent(model[0], (0, 2), bias=1.5)
    result = compact(model, torch.randn(2, 4))
    save(result, tmp_path)
    loaded = load(tmp_path, build())
    assert loaded[2].bias.requires_grad
    assert_same_bits(loaded, result.model, torch.randn(2, 4))


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    class TiedLayers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.a(x)) + torch.relu(self.b(x)))

    model = randomize(TiedLayers())
    with torch.no_grad():
        model.c.weight[:, 2:4] = 0
    result = compact(model, torch.randn(2, 4))
    assert result.model.a.weight is result.model.b.weight
    save(result, tmp_path)
    assert "b.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load(tmp_path, TiedLayers())
    assert loaded.a.weight is loaded.b.weight
    assert loaded.a.weight.shape == (4, 4)
    assert_same_bits(loaded, result.model, torch.randn(2, 4))
    untied = TiedLayers()
    untied.b.weight = nn.Parameter(untied.a.weight.detach().clone())
    with pytest.raises(CheckpointError, match=r"b\.weight"):
        load(tmp_path, untied)


def test_fine_tuned_weights_are_saved(tmp_path: Path) -> None:
    result = compacted("mlp")
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter += 0.1
    save(result, tmp_path)
    assert_same_bits(load(tmp_path, Mlp()), result.model, torch.randn(2, 6))


def test_model_on_the_meta_device(tmp_path: Path) -> None:
    result = compacted("resnet")
    save(result, tmp_path)
    with torch.device("meta"):
        fresh = ResNet()
    assert_same_bits(load(tmp_path, fresh).eval(), result.model.eval(), CASES["resnet"].example())


def test_buffers_outside_of_the_state(tmp_path: Path) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
            self.register_buffer("shift", torch.arange(6.0), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.sin(self.a(x) + self.shift))

    model = randomize(Shifted())
    with torch.no_grad():
        model.b.weight[:, [1, 4]] = 0
    result = compact(model, torch.randn(2, 4))
    assert result.model.shift.tolist() == [0, 2, 3, 5]
    save(result, tmp_path)
    assert_same_bits(load(tmp_path, Shifted()), result.model, torch.randn(2, 4))


def test_plan_is_plain_and_names_versions(tmp_path: Path) -> None:
    result = compacted("resnext")
    assert json.loads(json.dumps(result.plan)) == result.plan
    save(result, tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["format"] == "sparse_accel.compact"
    assert plan["version"] == 1
    assert plan["torch"] == torch.__version__
    assert plan["class"].endswith("ResNeXt")
    assert plan["attributes"]["grouped"]["groups"] == [3, 2]


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unrelated = nn.Linear(2, 2)


def lenet_with(**changes: nn.Module) -> LeNet:
    model = LeNet()
    for name, module in changes.items():
        setattr(model, name, module)
    return model


@pytest.mark.parametrize(
    "model, message",
    [
        (Other(), r"conv1\.weight: expected in the model.*LeNet.*Other"),
        (
            lenet_with(conv2=nn.Conv2d(6, 9, 3)),
            r"conv2\.weight: expected the dense shape \[8, 6, 3, 3\], got \[9, 6, 3, 3\]",
        ),
        (lenet_with(extra=nn.Linear(2, 2)), r"extra\.weight: the model has this tensor, the checkpoint does not"),
        (lenet_with(fc2=nn.Linear(10, 5)), r"fc2\.weight: expected the dense shape \[4, 10\], got \[5, 10\]"),
    ],
    ids=["class", "shape", "extra", "uncut"],
)
def test_other_models_are_refused(model: nn.Module, message: str, tmp_path: Path) -> None:
    save(compacted("lenet"), tmp_path)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, model)
    assert_unchanged(model, before)


def test_attributes_are_checked(tmp_path: Path) -> None:
    save(compacted("lenet"), tmp_path)
    model = LeNet()
    model.conv2.out_channels = 7
    with pytest.raises(CheckpointError, match="conv2: out_channels: expected 8, got 7"):
        load(tmp_path, model)


def test_compact_model_is_not_a_dense_one(tmp_path: Path) -> None:
    result = compacted("lenet")
    save(result, tmp_path)
    with pytest.raises(CheckpointError, match="expected the dense shape"):
        load(tmp_path, result.model)


def damage(directory: Path, what: str) -> None:
    plan = json.loads((directory / "plan.json").read_text())
    tensors = load_file(directory / "model.safetensors")
    if what in ("plan.json", "model.safetensors"):
        (directory / what).unlink()
        return
    if what == "json":
        (directory / "plan.json").write_text("{")
        return
    if what == "truncated":
        data = (directory / "model.safetensors").read_bytes()
        (directory / "model.safetensors").write_bytes(data[: len(data) // 2])
        return
    if what == "tensor":
        tensors.pop("conv1.bias")
    elif what == "shape":
        tensors["conv1.bias"] = torch.zeros(3)
    elif what == "format":
        plan["format"] = "else"
    elif what == "version":
        plan["version"] = 99
    elif what == "key":
        del plan["saved"]
    elif what == "attribute":
        plan["attributes"]["conv1"]["forward"] = [None, 3]
    save_file(tensors, directory / "model.safetensors", metadata={"id": plan["id"]})
    (directory / "plan.json").write_text(json.dumps(plan))


@pytest.mark.parametrize(
    "what, message",
    [
        ("plan.json", r"plan\.json is missing"),
        ("model.safetensors", r"model\.safetensors is missing"),
        ("json", "not JSON"),
        ("truncated", r"model\.safetensors"),
        ("tensor", r"conv1\.bias"),
        ("shape", r"conv1\.bias: expected \[4\], got \[3\]"),
        ("format", "expected the format"),
        ("version", "expected version 1, got 99"),
        ("key", "'saved' is missing"),
        ("attribute", "conv1: forward: expected None"),
    ],
)
def test_damaged_checkpoints_are_refused(what: str, message: str, tmp_path: Path) -> None:
    save(compacted("lenet"), tmp_path)
    damage(tmp_path, what)
    model = LeNet()
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, model)
    assert_unchanged(model, before)


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        load(tmp_path / "nowhere", LeNet())


def test_extra_state_is_refused(tmp_path: Path) -> None:
    class Stateful(Mlp):
        def get_extra_state(self) -> Any:
            return {"a": 1}

        def set_extra_state(self, state: Any) -> None:
            del state

    result = compact(randomize(Stateful()), torch.randn(2, 6))
    with pytest.raises(CheckpointError, match="extra state"):
        save(result, tmp_path)


def test_tied_transpose_round_trip(tmp_path: Path) -> None:
    result = compacted("tied")
    save(result, tmp_path)
    assert_same_bits(load(tmp_path, Tied()), result.model, torch.randn(2, 6))


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "rmda": lambda m: RMDA(param_groups(m, GroupLasso(1e-3)), lr=0.05, momentum=0.5),
    "ramda": lambda m: RAMDA(param_groups(m, GroupLasso(1e-3)), lr=0.05, momentum=0.5),
    "prox_adamw": lambda m: ProxAdamW(param_groups(m, GroupLasso(1e-3)), lr=0.05),
    "prox_sgd": lambda m: ProxSGD(param_groups(m, GroupLasso(1e-3)), lr=0.05),
    "adamw": lambda m: torch.optim.AdamW(
        [{"params": [m.fc.weight], "lr": 0.1}, {"params": [p for p in m.parameters() if p is not m.fc.weight]}]
    ),
    "adamw_tensor_lr": lambda m: torch.optim.AdamW(m.named_parameters(), lr=torch.tensor(0.01)),
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "sgd_new": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
}


def step(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    """A step on made gradients with the parameters' strides: the bits are the optimizer's alone.

    (torch 2.13's own backward of a strided 1x1 convolution to odd channels in channels_last memory writes past its
    buffers on processors without AVX-512.)
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter).normal_(generator=generator)
    optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizer_goes_on_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    model = randomize(ResNet()).to(memory_format=torch.channels_last)
    CASES["resnet"].plant(model)
    optimizer = OPTIMIZERS[kind](model)
    if kind != "sgd_new":
        step(model, optimizer, 0)
        CASES["resnet"].plant(model)
    result = compact(model, CASES["resnet"].example(), optimizer=optimizer)
    assert result.optimizer is not None
    step(result.model, result.optimizer, 1)
    save(result, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    loaded = load(tmp_path, ResNet())
    again = load_optimizer(tmp_path, loaded, type(optimizer))
    assert type(again) is type(optimizer)
    for old, new in zip(result.optimizer.param_groups, again.param_groups, strict=True):
        assert old.keys() == new.keys()
        assert all(old[key] == new[key] for key in old if key != "params")
    for seed in (2, 3):
        step(result.model, result.optimizer, seed)
        step(loaded, again, seed)
    for (name, old), new in zip(result.model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(old, new), name
        assert result.optimizer.state[old].keys() == again.state[new].keys()


def test_optimizer_errors(tmp_path: Path) -> None:
    model = randomize(Mlp())
    CASES["mlp"].plant(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 6)).sum().backward()
    optimizer.step()
    result = compact(model, torch.randn(2, 6), optimizer=optimizer)
    save(result, tmp_path / "without", optimizer=False)
    with pytest.raises(CheckpointError, match=r"optimizer\.json is missing"):
        load_optimizer(tmp_path / "without", result.model, torch.optim.SGD)
    save(result, tmp_path / "with")
    with pytest.raises(CheckpointError, match=r"expected the class torch\.optim\.sgd\.SGD, got Adam"):
        load_optimizer(tmp_path / "with", result.model, torch.optim.Adam)
    with pytest.raises(CheckpointError, match=r"a\.weight: state 'momentum_buffer' has shape \[\d, 6\]"):
        load_optimizer(tmp_path / "with", Mlp(), torch.optim.SGD)
    with pytest.raises(CheckpointError, match=r"a\.weight: the optimizer has this parameter"):
        load_optimizer(tmp_path / "with", LeNet(), torch.optim.SGD)
    assert result.optimizer is not None
    result.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(7))]})
    with pytest.raises(CheckpointError, match=r"group 1 holds a parameter of shape \(7,\)"):
        save(result, tmp_path / "foreign")
    assert not (tmp_path / "foreign").exists()
