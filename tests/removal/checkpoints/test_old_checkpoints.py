"""Checkpoints that version 0.1.0 of July wrote, one of each kind: they load, to the same numbers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sparse_accel as sa
from sparse_accel.prune import Masks, load_sparse

OLD = Path(__file__).resolve().parents[2] / "data" / "checkpoints"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(6, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(self.norm(self.conv(x)).relu().mean((2, 3))).relu())


def expected(kind: str) -> dict[str, Tensor]:
    return load_file(OLD / kind / "expected.safetensors")


@pytest.mark.parametrize("kind", ["compact", "ispasp", "sparse"])
def test_models(kind: str) -> None:
    numbers = expected(kind)
    model = sa.load(OLD / kind, Net().eval())
    with torch.no_grad():
        torch.testing.assert_close(model(numbers["x"]), numbers["y"], rtol=1e-6, atol=1e-6)
    assert {"compact": (4, 5), "ispasp": (3, 4), "sparse": (6, 8)}[kind] == (
        model.conv.out_channels,
        model.hidden.out_features,
    )
    if kind != "sparse":
        stored = load_file(OLD / kind / "model.safetensors")
        assert all(torch.equal(stored[name], tensor) for name, tensor in model.state_dict().items())


def test_the_optimizer_goes_on() -> None:
    """One step and the proximal iterate, as the version that wrote the files computed them from there."""
    numbers = expected("compact")
    model = sa.load(OLD / "compact", Net().eval())
    optimizer = sa.load_optimizer(OLD / "compact", model, sa.RMDA)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.5] * 3
    model(numbers["x"]).square().sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), numbers[f"step.{name}"], rtol=1e-6, atol=1e-6)
    optimizer.finalize_()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), numbers[f"final.{name}"], rtol=1e-6, atol=1e-6)


def test_sparse_results_and_masks() -> None:
    result = load_sparse(OLD / "sparse", Net().eval())
    assert [layer.name for layer in result.report.layers] == ["conv", "hidden", "out"]
    assert result.report.sparsity == 0.5
    masks = Masks.load(OLD / "masks", result.model)
    assert list(masks) == list(result.masks) == ["conv.weight", "hidden.weight", "out.weight"]
    for name, mask in masks.items():
        assert torch.equal(mask, result.masks[name])
        assert torch.equal(mask, result.model.get_parameter(name) != 0)


@pytest.mark.parametrize("kind", ["compact", "sparse", "masks"])
def test_saved_again_they_are_new_ones(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / kind
    shutil.copytree(OLD / kind, folder)
    if kind == "masks":
        masks = Masks.load(folder, Net())
        again = Masks.load(masks.save(folder), Net())
        assert all(torch.equal(again[name], mask) for name, mask in masks.items())
        return
    (folder / "expected.safetensors").unlink()
    model = sa.load(folder, Net().eval())
    result = load_sparse(folder, Net().eval()) if kind == "sparse" else sa.compact(model, torch.zeros(1, 2, 5, 5))
    sa.save(result, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "plan.json"]  # nothing stale beside
    fresh = Net().eval() if kind == "sparse" else model
    loaded = sa.load(folder, fresh)
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_both_kinds_in_one_folder(tmp_path: Path) -> None:
    """As was possible when they had different names: each is still found."""
    for kind in ("compact", "sparse"):
        shutil.copytree(OLD / kind, tmp_path, dirs_exist_ok=True)
    assert sa.load(tmp_path, Net()).conv.out_channels == 4
    assert load_sparse(tmp_path, Net()).model.conv.out_channels == 6
    with pytest.raises(sa.CheckpointError, match=r"format .sparse_accel\.sparse_model."):
        load_sparse(OLD / "compact", Net())
