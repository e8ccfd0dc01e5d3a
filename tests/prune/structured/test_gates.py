"""Widths that are gated by themselves (squeeze-and-excitation) are pruned, and what is left whole is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gated_models
import pytest
import structured_models as nets
import torch
from gated_models import GATED
from torch import Tensor, nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.prune import ISpaSP, find_widths

IMAGES = nets.images()


class Block(nn.Module):
    """One convolution's channels, gated by what two others make of their means; or not gated."""

    def __init__(self, *, gated: bool = True) -> None:
        super().__init__()
        self.expand, self.project, self.gated = nn.Conv2d(8, 48, 1), nn.Conv2d(48, 8, 1), gated
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(48, 8, 1), nn.ReLU(), nn.Conv2d(8, 48, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.expand(x))
        return self.project(h * self.gate(h) if self.gated else h)


def block(*, gated: bool = True) -> Block:
    torch.manual_seed(0)
    return Block(gated=gated)


def test_a_gate_does_not_keep_the_channels() -> None:
    x = torch.randn(64, 8, 6, 6, generator=torch.Generator().manual_seed(1))
    result = ISpaSP(block(), x[:2]).run(x)
    assert {name: len(units) for name, units in result.kept.items()} == {"expand": 24, "gate.1": 4}
    assert result.model.expand.out_channels == result.model.project.in_channels == 24
    assert [(layer.in_channels, layer.out_channels) for layer in (result.model.gate[1], result.model.gate[3])] == [
        (24, 4),
        (4, 24),
    ]
    assert result.report.macs[1] < 0.5 * result.report.macs[0]
    width = result.report.widths[-1]
    assert width.name == "expand"
    assert width.error[1] < 0.1 * width.error[0]
    plain = ISpaSP(block(gated=False), x[:2], unvisited="ignore").run(x)
    assert {name: len(units) for name, units in plain.kept.items()} == {"expand": 24}


def least_squares(inputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the map [C] -> [O] that is nearest, from [N, C, h, w] and [N, O, h, w]."""
    x, t = (y.movedim(1, 0).flatten(1) for y in (inputs, wanted))
    dx, dt = x - x.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
    weight = torch.linalg.solve(dx @ dx.T, dx @ dt.T).T
    return weight, t.mean(1) - weight @ x.mean(1)


def test_consumers_behind_a_gate_see_the_gate_as_it_is_in_the_end() -> None:
    x = torch.randn(96, 8, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dense = block().double()
    result = ISpaSP(dense, x[:2], ridge=1e-11, relu_iterations=0, refit="dense", refit_head=False).run(x)
    small, kept = result.model, result.kept
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(model: nn.Module, kind: str) -> None:
        for name in ("gate.1", "gate.3", "project"):
            model.get_submodule(name).register_forward_hook(
                lambda _, args, out, key=f"{kind} {name}": seen.__setitem__(key, (args[0], out))
            )
        with torch.no_grad():
            model(x)

    watch(dense, "dense")
    watch(small, "small")
    assert seen["small gate.1"][0].shape == (96, 24, 1, 1)
    for name, rows in (("project", slice(None)), ("gate.1", kept["gate.1"])):
        layer = small.get_submodule(name)
        weight, bias = least_squares(seen[f"small {name}"][0], seen[f"dense {name}"][1][:, rows])
        torch.testing.assert_close(layer.weight[:, :, 0, 0].detach(), weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.bias.detach(), bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", GATED)
def test_nets_with_gates(name: str, tmp_path: Path) -> None:
    net, model = GATED[name], gated_models.gated(name)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    widths = find_widths(model, IMAGES[:2])
    for hidden, units in net.gated.items():
        width = widths.named(hidden)
        assert (width.units, width.coupled, width.refittable) == (units, False, True)
        assert [gate.endswith(net.gate) for gate in width.gates] == [True]
        assert [consumer.stage for consumer in width.consumers] == [0, 1]
    result = ISpaSP(model, IMAGES[:2], keep=0.5).run(IMAGES)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    for hidden, units in net.gated.items():
        assert len(result.kept[hidden]) == units // 2
    assert all(width.units[1] == width.units[0] // 2 for width in result.report.widths)
    assert result.report.macs[1] <= net.macs * result.report.macs[0]
    assert all(width.error[1] < width.error[0] or width.error[0] < 1e-6 for width in result.report.widths)
    with torch.no_grad():
        assert torch.isfinite(result.model(IMAGES)).all()
        loaded = sa.load(sa.save(result, tmp_path), model)
        assert torch.equal(loaded(IMAGES), result.model(IMAGES))
    left = {width.name for width in widths} - set(result.kept)
    notes = "\n".join(result.report.notes)
    assert all(width in notes for width in left)


@pytest.mark.parametrize("in_place", [False, True])
def test_gates_on_the_residual_stream(in_place: bool) -> None:
    model = gated_models.senet(in_place=in_place)  # sizes of the pooled means' view are read off the gated tensor
    widths = find_widths(model, IMAGES[:2])
    stream = widths.named("blocks.0.conv3.0")
    assert stream.coupled
    assert [c.module.rpartition(".")[2] for c in stream.consumers] == ["fc1", "0", "fc1", "fc"]
    result = ISpaSP(model, IMAGES[:2], scope="all").run(IMAGES)
    assert set(result.kept) == {width.name for width in widths}
    assert result.model.blocks[1].squeeze.fc2.out_features == 12
    with torch.no_grad():
        assert torch.isfinite(result.model(IMAGES)).all()


@pytest.mark.parametrize("method", ["gram_cosamp", "energy", "magnitude", "random"])
@pytest.mark.parametrize("refit", ["bias", None])
def test_methods_and_refits_on_gated_widths(method: str, refit: str | None) -> None:
    model = gated_models.gated("regnety")
    result = ISpaSP(model, IMAGES[:2], method=method, refit=refit).run(IMAGES)
    assert len(result.kept["blocks.1.conv2.0"]) == 8
    assert result.max_abs_diff < 1e-4


def test_a_budget_spends_gated_widths() -> None:
    model = gated_models.gated("efficientnet")
    result = ISpaSP(model, IMAGES[:2], budget={"flops": 0.6}).run(IMAGES)
    assert result.report.macs[1] <= 0.6 * result.report.macs[0]
    assert any(len(result.kept[name]) < units for name, units in GATED["efficientnet"].gated.items())


class Mixed(nn.Module):
    """``hidden`` with another layer computed from it (or from elsewhere), joined in one of many ways."""

    def __init__(self, join: Callable[[Mixed, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.join = join
        self.before, self.hidden, self.side = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 6)
        self.other, self.out = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.join(self, x, F.gelu(self.hidden(x))))


JOINS: dict[str, tuple[Callable[[Mixed, Tensor, Tensor], Tensor], bool, list[str]]] = {
    "product": (lambda m, x, h: h * torch.sigmoid(m.side(h)), False, ["side"]),
    "gate first": (lambda m, x, h: torch.tanh(m.side(h)) * h, False, ["side"]),
    "in place": (lambda m, x, h: torch.mul(h, 1.0).mul_(m.side(h).sigmoid_()), False, ["side"]),
    "quotient": (lambda m, x, h: h / (1 + m.side(h).abs()), False, ["side"]),
    "one more": (lambda m, x, h: h * (1 + torch.tanh(m.side(h))), False, ["side"]),
    "kept beside": (lambda m, x, h: h + h * torch.sigmoid(m.side(h)), False, ["side"]),
    "two gates": (lambda m, x, h: h * m.side(h).tanh() * m.other(h).sigmoid(), False, ["side", "other"]),
    "one on the other": (lambda m, x, h: (lambda y: y * m.other(y).tanh())(h * m.side(h)), False, ["side", "other"]),
    "sum": (lambda m, x, h: h + m.side(h), True, []),
    "difference": (lambda m, x, h: torch.sub(h, m.side(h)), True, []),
    "maximum": (lambda m, x, h: torch.maximum(h, m.side(h)), True, []),
    "gated sum": (lambda m, x, h: h + m.side(h) * torch.sigmoid(m.other(h)), True, []),
    "also added": (lambda m, x, h: (lambda s: h * s + s)(torch.sigmoid(m.side(h))), True, []),
    "gate of another": (lambda m, x, h: h * torch.sigmoid(m.before(x)), False, []),
    "stream after a gate": (lambda m, x, h: (lambda y: y + m.other(y))(h * torch.sigmoid(m.side(h))), True, []),
}


@pytest.mark.parametrize("name", JOINS)
def test_what_only_multiplies_is_no_addition_to_a_stream(name: str) -> None:
    join, coupled, gates = JOINS[name]
    torch.manual_seed(0)
    model = Mixed(join).double()
    x = torch.randn(80, 5, dtype=torch.float64)
    width = find_widths(model, x[:2], unvisited="ignore").named("hidden")
    assert (width.coupled, width.gates) == (coupled, gates)
    result = ISpaSP(model, x[:2], scope="all", unvisited="ignore").run(x)
    assert len(result.kept["hidden"]) == 3
    if coupled:
        inner = ISpaSP(model, x[:2], unvisited="ignore").run(x)
        assert "hidden" not in inner.kept
        assert any(note.startswith("hidden: left whole: a residual stream") for note in inner.report.notes)


class Looped(nn.Module):
    """Layers used in ways that leave no place for a new weight."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(6, 4)
        self.how = how
        if how == "tied":
            self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        if self.how == "functional":
            return F.linear(h, self.b.weight, self.b.bias)
        if self.how == "twice":
            return self.b(h) + self.b(F.relu(h - 1))
        return self.b(h) + self.c(h)


@pytest.mark.parametrize(
    "how, message",
    [
        ("twice", "one forward pass calls it 2 times"),
        ("tied", "its weight is also that of c"),
        ("functional", "it is computed by the forward pass of a Looped, not by a layer that owns the weight"),
    ],
)
def test_the_reason_why_a_reader_gets_no_new_weight(how: str, message: str) -> None:
    x = torch.randn(30, 4)
    result = ISpaSP(Looped(how), x[:2], unvisited="ignore").run(x)
    assert not result.kept
    reader = "" if how == "functional" else "b"
    assert f"a (read by {reader}): left whole: no new weight for a reader: {message}" in result.report.notes


def test_equal_reasons_stand_together() -> None:
    torch.manual_seed(0)
    blocks = [Mixed(JOINS["sum"][0]) for _ in range(6)]
    for one in blocks:
        one.out = nn.Linear(6, 5)
    model = nn.Sequential(*blocks)
    x = torch.randn(30, 5)
    result = ISpaSP(model, x[:2], unvisited="ignore").run(x)
    note = next(note for note in result.report.notes if "residual" in note)
    assert note.startswith("6 widths (0.hidden, 1.hidden, 2.hidden, 3.hidden, …): left whole: a residual stream")
    model = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)) for _ in range(3)))
    refused = find_widths(model, x[:2, [0, 1, 2, 3, 4, 4]]).refused
    assert refused["2.0"] == "2.0 (Linear): its outputs must stay"
    assert "3 layers (0.0, 1.0, 2.0): its outputs must stay" in str(refused).splitlines()
    with pytest.raises(sa.UnsupportedModelError, match=r"nothing can be pruned: 3 layers \(0.0, 1.0, 2.0\): its"):
        ISpaSP(model, x[:2, [0, 1, 2, 3, 4, 4]]).run(x[:, [0, 1, 2, 3, 4, 4]])
