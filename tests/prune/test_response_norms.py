"""Widths over which a response normalization takes a mean: found, pruned, and the mean made up for."""

from __future__ import annotations

import copy

import pytest
import torch
from norm_models import Block, First, Last, convnext, pictures
from torch import nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.channels.rules.response_norm import form_of, norms_of
from sparse_accel.prune import ISpaSP, find_widths, remove_units

X = pictures()


class Scaled(nn.Module):
    """Parameters like a response norm's, and something else done with them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.weight, self.bias = (nn.Parameter(torch.randn(1, 1, 1, 5)) for _ in range(2))

    def forward(self, x):
        if self.how == "affine":
            return x * self.weight + self.bias
        if self.how == "scaled":
            return x + x * self.weight + self.bias
        g = torch.linalg.vector_norm(x, dim=(1, 2) if self.how == "maximum" else -1, keepdim=True)
        return self.weight * x * g / (g.amax(-1, keepdim=True) + 1e-6) + self.bias + x


def test_what_a_response_norm_is():
    assert form_of(Last(5), torch.zeros(2, 3, 4, 5)) == ("weight", "bias", 3)
    assert form_of(First(5), torch.zeros(2, 5, 3, 4)) == ("weight", "bias", 1)
    assert form_of(First(5), torch.zeros(2, 5, 5)) == ("weight", "bias", 1)  # both dimensions fit
    assert form_of(Last(5), torch.zeros(2, 5, 5, 5, dtype=torch.float32)) == ("weight", "bias", 3)
    silent = Last(5)
    nn.init.zeros_(silent.weight)  # as they begin: an identity
    nn.init.zeros_(silent.bias)
    assert form_of(silent, torch.zeros(2, 3, 4, 5)) == ("weight", "bias", 3)
    assert not bool(silent.weight.any())
    for how in ("affine", "scaled", "maximum", "over the channels"):
        assert form_of(Scaled(how), torch.zeros(2, 3, 4, 5)) is None
    assert form_of(nn.InstanceNorm2d(5, affine=True), torch.zeros(2, 5, 3, 4)) is None
    assert form_of(Last(5).double(), torch.zeros(2, 3, 4, 5, dtype=torch.float64)) == ("weight", "bias", 3)


@pytest.mark.parametrize("norm", ["last", "first"])
def test_widths_know_their_norms(norm):
    model = convnext(norm=norm)
    widths = find_widths(model, X[:2])
    assert [(w.name, w.units, w.coupled) for w in widths if w.norms] == [
        ("1.expand", 16, False),
        ("2.expand", 16, False),
    ]
    (mean,) = widths.named("1.expand").norms
    assert (mean.module, mean.weight, mean.whole) == ("1.norm", "1.norm.weight", True)
    assert mean.dim == (3 if norm == "last" else 1)
    assert mean.channels.flatten().tolist() == list(range(16))


@pytest.mark.parametrize("norm", ["last", "first"])
def test_removed_units_leave_the_mean(norm):
    model = convnext(norm=norm)
    kept = [0, 3, 4, 9, 12]
    small = remove_units(model, X[:2], {"1.expand": kept})
    assert small.model[1].norm.weight.numel() == 5
    assert torch.equal(small.model[1].norm.bias.flatten(), model[1].norm.bias.flatten()[kept])
    torch.testing.assert_close(small.model[1].norm.weight.flatten(), model[1].norm.weight.flatten()[kept] * 16 / 5)
    assert small.plan["scaled"] == {"1.norm.weight": 16 / 5}
    # The same as dense if what makes the units is zero.
    silent = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in (silent[1].expand.weight, silent[1].expand.bias):
            parameter[[unit for unit in range(16) if unit not in kept]] = 0
        gone = [unit for unit in range(16) if unit not in kept]
        silent[1].project.weight[:, gone] = 0
    torch.testing.assert_close(small.model(X), silent(X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["last", "first"])
@pytest.mark.parametrize("fit", ["auto", "local", "dense", "bias", None])
def test_pruned(norm, fit, tmp_path):
    model = convnext(norm=norm)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    pruner = ISpaSP(model, X[:2], 0.5, refit=fit)
    result = pruner.run([X[:16], X[16:]])
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert result.max_abs_diff < 1e-4
    for number, change in enumerate(result.report.widths, start=1):
        assert change.units == (16, 8)
        kept = result.kept[change.name]
        # gamma times the least-squares ratio of the means on the pruned front
        front = result.model[:number](X)
        block = model[number]
        h = block.depthwise(front)
        h = block.act(block.expand(h.permute(0, 2, 3, 1) if block.last else h)).detach()
        g = norms_of(h.double(), 3 if block.last else 1).flatten(1)
        ratio = g.mean(1) / g[:, kept].mean(1)
        rho = float(ratio.sum() / ratio.square().sum())
        expected = block.norm.weight.flatten()[kept] * rho
        torch.testing.assert_close(result.model[number].norm.weight.flatten(), expected, rtol=1e-4, atol=1e-5)
        spread = 100 * float((1 - rho * ratio).square().mean().sqrt())
        assert change.note.startswith(f"{number}.norm: divides by the mean over the 8 units kept: {number}.norm.weight")
        assert (
            f"times {rho:.4g} makes up for it on average, what is left varies by {spread:.2g} % between" in change.note
        )
        assert change.note in result.report.notes
        if fit is not None:
            assert change.error[1] < change.error[0]
    loaded = sa.load(sa.save(result, tmp_path), model)
    with torch.no_grad():
        assert torch.equal(loaded(X), result.model(X))
    again = pruner.run([X[16:], X[:16]])
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), result.model.parameters(), strict=True))


def test_the_local_target_is_what_the_units_were():
    """The refit is the least squares from the units behind the new mean to what the layer made of the old ones."""
    model = convnext(blocks=1)
    result = ISpaSP(model, X[:2], 0.5, refit="local", ridge=1e-6).run(X)
    dense, small = model[1], result.model[1]

    def inside(block):
        h = block.depthwise(model[0](X)).permute(0, 2, 3, 1)
        return block.norm(block.act(block.expand(h))).detach().double().flatten(0, 2)

    target = inside(dense) @ dense.project.weight.detach().double().T + dense.project.bias.detach().double()
    new = torch.cat([inside(small), torch.ones(len(target), 1, dtype=torch.float64)], 1)
    best = new @ torch.linalg.lstsq(new, target).solution
    came = inside(small) @ small.project.weight.detach().double().T + small.project.bias.detach().double()
    least = float((target - best).square().sum())
    assert float((target - came).square().sum()) <= 1.01 * least
    variation = float((target - target.mean(0)).square().sum())
    assert result.report.widths[0].error[1] == pytest.approx(least / variation, rel=0.02)


@pytest.mark.parametrize("method", ["ispasp", "energy", "magnitude", "random"])
def test_methods(method):
    model = convnext()
    result = ISpaSP(model, X[:2], 0.5, method=method).run(X)
    plain = ISpaSP(model, X[:2], 0.5, method=method, refit=None).run(X)
    with torch.no_grad():
        dense = model(X)
        errors = [float((r.model(X) - dense).square().mean()) for r in (result, plain)]
    assert errors[0] < errors[1]
    assert [len(kept) for kept in result.kept.values()] == [8, 8]


def test_fine_tuning_sees_the_weight_as_it_will_be():
    model = convnext()
    seen = []

    def look(small, name):
        seen.append(small[1].norm.weight.detach().clone())

    result = ISpaSP(model, X[:2], 0.5, fine_tune=look).run(X)
    plain = ISpaSP(model, X[:2], 0.5).run(X)
    torch.testing.assert_close(seen[0], result.model[1].norm.weight.detach())
    torch.testing.assert_close(result.model[1].norm.weight, plain.model[1].norm.weight)
    torch.testing.assert_close(result.model(X), plain.model(X), rtol=1e-3, atol=1e-3)


class Joined(nn.Module):
    """The norm's mean is over the channels of two layers, or of a sum."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.one, self.other = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.scale = nn.BatchNorm2d(8)
        self.norm, self.out = First(16 if how == "two layers" else 8), nn.Conv2d(16 if how == "two layers" else 8, 4, 1)
        nn.init.ones_(self.scale.bias)

    def forward(self, x):
        if self.how == "two layers":
            return self.out(self.norm(torch.cat([self.one(x), self.other(x).relu()], 1)))
        return self.out(self.norm(self.scale(self.one(x)) if self.how == "shifted" else torch.sigmoid(self.one(x))))


@pytest.mark.parametrize(
    "how, words",
    [
        ("two layers", "divides by a mean over other channels, too"),
        ("shifted", "takes units that are not zero where what makes them is"),
        ("sigmoid", "takes units that are not zero where what makes them is"),
    ],
)
def test_what_cannot_be_made_up_for_is_left_and_named(how, words):
    torch.manual_seed(0)
    model = Joined(how).eval()
    result = ISpaSP(model, X[:2], 0.5, unvisited="ignore").run(X)
    assert not result.kept
    assert f"one: left whole: norm {words}" in result.report.notes


def test_models_with_other_blocks_beside():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), Block(act=F.relu), nn.Conv2d(6, 12, 1), nn.ReLU(), nn.Conv2d(12, 2, 1))
    result = ISpaSP(model.eval(), X[:2], budget={"params": 0.7}).run(X)
    assert result.report.params[1] <= 0.7 * result.report.params[0]
    assert {"1.expand", "2"} >= set(result.kept) != set()
