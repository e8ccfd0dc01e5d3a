"""ISpaSP on the usual architectures, and what it finds out about their residual additions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import structured_models as nets
import torch
from prune_models import NETS, hugging_face
from torch import Tensor, nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.channels.call import run_model, tree_tensors
from sparse_accel.prune import ISpaSP
from sparse_accel.prune.structured.sites import Watch, find_sites

IMAGES = nets.images()


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        return list(tree_tensors(run_model(model, inputs)))


def check(model: nn.Module, example: Any, data: Any, directory: Path, **how: Any) -> sa.prune.StructuredResult:
    """Prune, save, load, compare, run backward."""
    model.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = ISpaSP(model, example, keep=0.5, **how).run(data)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert result.report.macs[1] < result.report.macs[0]
    assert result.report.params[1] < result.report.params[0]
    loaded = sa.load(sa.save(result, directory), model)
    for one, two in zip(outputs(loaded, example), outputs(result.model, example), strict=True):
        assert torch.equal(one, two)
    first = next(tree_tensors(run_model(result.model.train(), example)))
    first.sum().backward()
    return result


@pytest.mark.parametrize("name", NETS)
def test_usual_nets(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = NETS[name]
    model, example = net.build(), net.example()
    data = torch.randn(16, *example.shape[1:], generator=torch.Generator().manual_seed(2))
    result = check(model, example, data, tmp_path)
    assert len(result.kept) == net.channels + net.heads
    assert all(width.error[1] <= width.error[0] + 1e-9 for width in result.report.widths if "relu" not in width.target)


@pytest.mark.parametrize("name", ["bert", "vit", "deit", "llama", "qwen3", "gpt2", "convnext"])
def test_transformers(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    model, example = hugging_face(name, "sdpa")
    generator = torch.Generator().manual_seed(2)
    data = []
    for _ in range(3):
        batch = {key: value.repeat(4, *[1] * (value.dim() - 1)) for key, value in example.items()}
        if "input_ids" in batch:
            batch["input_ids"] = torch.randint(0, 50, batch["input_ids"].shape, generator=generator)
        else:
            batch["pixel_values"] = torch.randn(batch["pixel_values"].shape, generator=generator)
        data.append(batch)
    result = check(model, example, data, tmp_path)
    assert {width.target for width in result.report.widths} == {"local"}
    kinds = {"channels"} if name == "convnext" else {"channels", "heads"}
    assert {width.kind for width in result.report.widths} == kinds
    half = ISpaSP(model, example, budget={"flops": 0.75}).run(data)
    assert half.report.macs[1] <= 0.75 * half.report.macs[0]


def sites_of(model: nn.Module, x: Tensor, norms: dict[str, str | None]) -> dict[str, tuple[bool, bool]]:
    return {name: (site.residual, site.relu) for name, site in find_sites(model.eval(), x, norms).items()}


@pytest.mark.parametrize("in_place", [False, True])
def test_residual_additions_are_found(in_place: bool) -> None:
    model = nets.resnet(in_place=in_place)
    norms = {"conv1": "bn1", "layer1.0.conv1": "layer1.0.bn1", "layer1.0.conv2": "layer1.0.bn2"}
    norms |= {"layer2.conv2": "layer2.bn2", "layer2.down.0": "layer2.down.1", "fc": None}
    assert sites_of(model, IMAGES[:2], norms) == {
        "conv1": (False, True),
        "layer1.0.conv1": (False, True),
        "layer1.0.conv2": (True, True),
        "layer2.conv2": (True, True),
        "layer2.down.0": (True, True),
        "fc": (False, False),
    }


class Odd(nn.Module):
    """Additions that are none of the usual."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.drop = nn.Dropout()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        y = self.drop(self.b(h))
        forms = {
            "plain": lambda: F.relu(x + y),
            "torch": lambda: torch.add(input=y, other=x).relu_(),
            "scaled": lambda: F.relu(torch.add(x, y, alpha=2)),
            "itself": lambda: F.relu(y + y),
            "broadcast": lambda: F.relu(y + x[:1]),
            "number": lambda: F.relu(y + 1.0),
            "gelu": lambda: F.gelu(x + y),
            "twice": lambda: F.relu(x + y) + y,
            "both": lambda: (lambda s: F.relu(s) + s)(x + y),
            "out": lambda: x + y,
        }
        return forms[self.form]()


@pytest.mark.parametrize(
    "form, expected",
    [
        ("plain", (True, True)),
        ("torch", (True, True)),
        ("scaled", (False, False)),
        ("itself", (False, False)),
        ("broadcast", (False, False)),
        ("number", (False, False)),
        ("gelu", (True, False)),
        ("twice", (False, False)),
        ("both", (True, False)),
        ("out", (True, False)),
    ],
)
def test_only_plain_additions_and_relus_count(form: str, expected: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    model = Odd(form).eval()
    assert sites_of(model, x, {"b": None})["b"] == expected
    result = ISpaSP(model, x, refit="skip").run(x)
    assert result.report.widths[0].target == ("skip" if expected[0] else "dense")
    assert torch.isfinite(result.model(x)).all()


def test_a_pass_ends_early_and_shows_the_sum() -> None:
    model = nets.resnet(in_place=True)
    sites = find_sites(model, IMAGES[:2], {"layer1.1.conv2": "layer1.1.bn2"})
    ran = []
    model.layer2.register_forward_hook(lambda *_: ran.append(True))
    watch = Watch(model, sites, inputs=True, results=True, sums=["layer1.1.conv2"])
    with watch.hooked():
        seen = watch.run(IMAGES)["layer1.1.conv2"]
    assert not ran
    block = model.layer1[1]
    with torch.no_grad():
        short = F.relu(model.layer1[0](F.relu(model.bn1(model.conv1(IMAGES)))))
        hidden = F.relu(block.bn1(block.conv1(short)))
        total = block.bn2(block.conv2(hidden)) + short
    torch.testing.assert_close(seen.inputs[0], hidden)
    torch.testing.assert_close(seen.results[0], total)
    torch.testing.assert_close(seen.shortcuts[0], short)


def test_a_layer_that_some_batches_do_not_call() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x))) if x.shape[0] > 1 else x

    model, x = Sometimes(), torch.randn(30, 4)
    result = ISpaSP(model, torch.zeros(2, 4)).run([x[:1], x[1:], x[2:3]])  # two batches do not call it
    assert torch.equal(result.model.b.weight, ISpaSP(model, torch.zeros(2, 4)).run([x[1:]]).model.b.weight)
    idle = ISpaSP(model, torch.zeros(2, 4)).run([x[:1]])  # none does: what is read with the largest weights stays
    norms = model.b.weight.square().sum(0)
    assert idle.kept["a"] == norms.argsort(descending=True)[:4].sort().values.tolist()
