"""sa.save and sa.load of accelerated models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sparse_accel as sa
from sparse_accel.acceleration.accelerate import AccelerateResult, put
from sparse_accel.acceleration.layers import BitmaskLayer, CSRLayer
from sparse_accel.acceleration.report import AccelerateReport


class Net(nn.Module):
    def __init__(self, width: int = 20, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, width, 1, bias=bias)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


def made(form: str, *, int8: bool = False, dtype: torch.dtype = torch.float32) -> AccelerateResult:
    torch.manual_seed(0)
    net = Net().eval().to(dtype)
    for layer in (net.conv, net.fc):
        layer.weight.data[torch.rand(layer.weight.shape) < 0.6] = 0
    net.norm(torch.randn(8, 20, 3, 3, dtype=dtype))
    own = [BitmaskLayer(layer, int8=int8) if form == "bitmask" else CSRLayer(layer) for layer in (net.conv, net.fc)]
    put(net, {"conv": own[0], "fc": own[1]})
    return AccelerateResult(net, AccelerateReport([], {}, 1.1, (1.0, 1.0), 0.0, []))


@pytest.mark.parametrize(
    ("form", "int8", "dtype"),
    [
        ("bitmask", False, torch.float32),
        ("bitmask", False, torch.bfloat16),
        ("bitmask", True, torch.float32),
        ("bitmask", True, torch.bfloat16),
        ("csr", False, torch.float32),
    ],
)
def test_round_trip(tmp_path: Path, form: str, int8: bool, dtype: torch.dtype) -> None:
    result, x = made(form, int8=int8, dtype=dtype), torch.randn(2, 4, 5, 5, dtype=dtype)
    sa.save(result, tmp_path)
    fresh = Net().to(dtype)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    loaded = sa.load(tmp_path, fresh.eval())
    assert torch.equal(loaded(x), result.model(x))
    assert [type(module) for module in loaded.modules()] == [type(module) for module in result.model.modules()]
    assert all(torch.equal(before[key], value) for key, value in fresh.state_dict().items())
    dense = sa.densify(loaded)
    assert torch.equal(dense.fc.weight, sa.densify(result).fc.weight)  # type: ignore[union-attr, arg-type]
    assert torch.equal(dense.norm.running_mean, result.model.norm.running_mean)  # type: ignore[union-attr, arg-type]


def test_from_the_clock_and_one_layer(tmp_path: Path) -> None:
    net = nn.Linear(300, 200)
    net.weight.data[torch.rand(200, 300) < 0.9] = 0
    result = sa.accelerate(net, torch.randn(3, 300), budget_s=0.02)
    sa.save(result, tmp_path)
    loaded = sa.load(tmp_path, nn.Linear(300, 200))
    x = torch.randn(3, 300)
    assert torch.equal(loaded(x), result.model(x))
    assert json.loads((tmp_path / "plan.json").read_text())["report"]["layers"][0]["name"] == ""


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Net(21), r"conv: expected outputs and inputs \[20, 4\], got \[21, 4\]"),
        (Net(bias=False), r"conv.bias: only one of the checkpoint and the model has this tensor"),
        (nn.Sequential(nn.Linear(3, 3)), "conv: expected a Conv2d in the model, got none"),
        (nn.ModuleDict({"conv": nn.Linear(4, 20), "fc": nn.Linear(20, 9)}), "conv: expected a Conv2d .* got a Linear"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, model: nn.Module, message: str) -> None:
    sa.save(made("bitmask"), tmp_path)
    with pytest.raises(sa.CheckpointError, match=message):
        sa.load(tmp_path, model)


def _rewrite(folder: Path, change: Any) -> None:
    """Change the tensors as somebody would who also mends the plan's checksums."""
    from sparse_accel.removal.files import checksum, identity

    tensors = load_file(folder / "model.safetensors")
    plan = json.loads((folder / "plan.json").read_text())
    change(tensors, plan)
    for name, tensor in tensors.items():
        plan["tensors"][name] |= {"crc32": checksum(tensor), "shape": list(tensor.shape)}
    plan["id"] = identity(plan)
    (folder / "plan.json").write_text(json.dumps(plan))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "id": plan["id"]})


@pytest.mark.parametrize("form", ["bitmask", "csr"])
def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path, form: str) -> None:
    sa.save(made(form), tmp_path)

    def shift(tensors: dict[str, Tensor], plan: Any) -> None:
        tensors["fc.offsets" if form == "bitmask" else "fc.crow"] += 1

    _rewrite(tmp_path, shift)
    with pytest.raises(sa.CheckpointError, match=r"layers.fc: fc: (offsets: expected those of the bits|`?crow)"):
        sa.load(tmp_path, Net())


def test_damage_and_unknown_forms_are_refused(tmp_path: Path) -> None:
    sa.save(made("bitmask"), tmp_path)

    def rename(tensors: dict[str, Tensor], plan: Any) -> None:
        plan["layers"]["fc"]["form"] = "ell"

    _rewrite(tmp_path, rename)
    with pytest.raises(sa.CheckpointError, match=r"layers.fc.form: expected 'bitmask' or 'csr', got \"ell\""):
        sa.load(tmp_path, Net())
    sa.save(made("bitmask"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    plan = json.loads((tmp_path / "plan.json").read_text())
    tensors["fc.values"][0] += 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt", "id": plan["id"]})
    with pytest.raises(sa.CheckpointError, match=r"fc\.values: damaged"):
        sa.load(tmp_path, Net())
