"""The path: exact at its ends, silent where the theory says so, and refused where it is not exact."""

from __future__ import annotations

import copy
import json
import random
import sys

import numpy as np
import pytest
import torch
from diagnosed_models import Conv, Gated, GatedTwice, Residual, mlp, prepared, samples, shaken, transposed, unchanged
from torch import nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.channels.graph import UnsupportedModelError
from sparse_accel.diagnostics import dropout_stability, low_loss_path
from sparse_accel.diagnostics._chain import find_chain

NETS = {
    "two layers": lambda: mlp(12),
    "an odd width": lambda: mlp(13),
    "no biases": lambda: mlp(12, bias=False),
    "three layers": lambda: mlp(10, 8),
    "three layers, odd": lambda: mlp(11, 7),
    "five layers": lambda: mlp(6, 9, 7, 8),
    "convolutions": Conv,
    "gated": Gated,
    "gated twice": GatedTwice,
    "transposed": transposed,
}


def pair(kind: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return shaken(NETS[kind](), 1), shaken(NETS[kind](), 2)


def outputs(model: nn.Module, state, x) -> torch.Tensor:
    model = copy.deepcopy(model).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("kind", NETS)
def test_the_path_is_what_it_says(kind: str, refit: bool) -> None:
    a, b = pair(kind)
    x, y = samples(a)
    path = low_loss_path(a, b, F.cross_entropy, (x, y), refit=refit, points=2, aligned=False)
    count = len(path.segments)
    assert count == 4 * len(path.layers) + 1
    assert path.segments == tuple("inner" if number % 2 else "outer" for number in range(count))
    assert len(path.t) == len(path.losses) == len(path.straight) == 2 * count + 1
    for t, model in ((0.0, a), (1.0, b)):  # the ends, to the bit, buffers too
        state = path(t)
        assert list(state) == list(model.state_dict())
        assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
        assert all(torch.equal(path(t, "straight")[key], tensor) for key, tensor in model.state_dict().items())
    assert (path.losses[0], path.losses[-1]) == path.ends
    for t, loss in zip(path.t, path.losses, strict=True):
        assert float(F.cross_entropy(outputs(a, path(t), x), y)) == pytest.approx(loss, rel=1e-5)
    moved = False
    for number, segment in enumerate(path.segments):
        corners = [path((number + share) / count) for share in (0.001, 0.5, 0.999)]
        results = [outputs(a, state, x) for state in corners]
        if segment == "inner":  # not one bit of the outputs sees these weights
            assert all(torch.equal(results[0], result) for result in results[1:])
            moved |= any(not torch.equal(corners[0][key], corners[2][key]) for key in corners[0])
        else:  # a line of outer weights is a line of outputs
            middle = (results[0] + results[2]) / 2
            assert torch.allclose(results[1], middle, atol=1e-4 * float(middle.abs().max()))
    assert moved


@pytest.mark.parametrize("kind", ["two layers", "an odd width", "no biases"])
def test_the_five_segments_of_the_paper(kind: str) -> None:
    """a -> (2 a_A, 0); w_B -> w'_B; a -> (0, 2 a'_B); w_A -> w'_A; a -> a'."""
    a, b = pair(kind)
    path = low_loss_path(a, b, F.cross_entropy, samples(a), points=1, aligned=False, seed=4)
    corners = [path(number / 5) for number in range(6)]
    half = corners[1]["2.weight"].abs().sum(0) > 0
    units = len(half)
    assert int(half.sum()) == units // 2
    w, outer = "0.weight", "2.weight"
    ours, theirs = a.state_dict(), b.state_dict()
    scales = units / int(half.sum()), units / int((~half).sum())
    assert torch.equal(corners[1][outer][:, half], ours[outer][:, half] * scales[0])
    assert torch.equal(corners[1][w], ours[w])
    assert torch.equal(corners[2][w][~half], theirs[w][~half])
    assert torch.equal(corners[2][w][half], ours[w][half])
    assert torch.equal(corners[2][outer], corners[1][outer])
    assert torch.equal(corners[3][outer][:, ~half], theirs[outer][:, ~half] * scales[1])
    assert float(corners[3][outer][:, half].abs().max()) == 0
    assert torch.equal(corners[3][w], corners[2][w])
    assert torch.equal(corners[4][w], theirs[w])
    assert torch.equal(corners[4][outer], corners[3][outer])


def test_the_barrier_is_at_most_the_change_by_dropout() -> None:
    """The corners of the three-layer form are the networks that dropout gives: no other loss is on the path."""
    a, b = pair("three layers")
    data = samples(a)
    path = low_loss_path(a, b, F.cross_entropy, data, points=8, aligned=False, seed=1)
    corners = [path.losses[8 * number] for number in range(10)]
    assert max(path.losses) == pytest.approx(max(corners), rel=1e-6)  # a convex loss on lines
    halves = []
    for model, start in ((a, 0.0), (b, 1.0)):
        state = path(1 / 9 if start == 0 else 8 / 9)
        halves.append(state["4.weight"].abs().sum(0) > 0)
        kept = halves[-1].nonzero().flatten()
        masked = copy.deepcopy(model)
        with torch.no_grad():
            masked[4].weight.zero_()[:, kept] = 2 * model[4].weight[:, kept]
            expected = float(F.cross_entropy(masked(data[0]), data[1]))
        assert corners[1 if start == 0 else 8] == pytest.approx(expected, rel=1e-5)
    assert not bool((halves[0] & halves[1]).any())


@pytest.mark.parametrize(
    "kind", ["two layers", "three layers", "five layers", "convolutions", "gated", "gated twice", "transposed"]
)
def test_a_permuted_copy_is_no_barrier_away(kind: str) -> None:
    a, _ = pair(kind)
    x, _ = samples(a)
    chain = find_chain(copy.deepcopy(a).eval(), x)
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(width.units, generator=generator) for width in chain.widths]
    b = copy.deepcopy(a)
    state = {name: tensor.detach() for name, tensor in [*a.named_parameters(), *a.named_buffers()]}
    b.load_state_dict(chain.permuted(state, orders))
    assert torch.allclose(outputs(a, a.state_dict(), x), outputs(b, b.state_dict(), x), atol=1e-5)
    assert not all(torch.equal(one, other) for one, other in zip(a.parameters(), b.parameters(), strict=True))
    path = low_loss_path(a, b, F.mse_loss, (x, outputs(a, a.state_dict(), x)), points=3)
    assert path.barrier_of("aligned") == 0.0
    assert set(path.aligned) == {path.ends[0]}
    assert path.barrier_of("straight") > 1e-3
    end = path(1.0, "aligned")
    assert all(torch.equal(end[key], tensor) for key, tensor in a.state_dict().items())


def test_aligning_moves_units_and_keeps_the_function() -> None:
    a, b = pair("three layers")
    x, y = samples(a)
    path = low_loss_path(a, b, F.cross_entropy, (x, y), points=3)
    end = path(1.0, "aligned")
    assert torch.allclose(outputs(a, end, x), outputs(b, b.state_dict(), x), atol=1e-5)
    own = {key: tensor.double() for key, tensor in a.state_dict().items()}

    def distance(state) -> float:
        return sum(float((state[key] - tensor).square().sum()) for key, tensor in own.items())

    assert distance(end) < distance(b.state_dict())


def test_networks_of_copies_are_connected_without_a_barrier() -> None:
    """Each unit of a layer is there twice, and halves are drawn until each has one of every pair."""
    torch.manual_seed(0)
    nets = [mlp(4) for _ in range(2)]
    for net in nets:
        with torch.no_grad():
            net[0].weight[2:], net[0].bias[2:] = net[0].weight[:2].clone(), net[0].bias[:2].clone()
            net[2].weight[:, 2:] = net[2].weight[:, :2].clone()
    path = low_loss_path(*nets, F.cross_entropy, samples(nets[0]), trials=30, aligned=False)
    assert path.barrier < 1e-6
    assert low_loss_path(*nets, F.cross_entropy, samples(nets[0]), refit=True, trials=30, aligned=False).barrier < 1e-6


@pytest.mark.parametrize("kind", ["two layers", "convolutions"])
@pytest.mark.parametrize("refit", [False, True])
def test_the_models_stay(kind: str, refit: bool) -> None:
    a, b = (prepared(net) for net in pair(kind))
    random.seed(1), np.random.seed(2), torch.manual_seed(3)  # noqa: NPY002
    with unchanged(a, b):
        path = low_loss_path(a, b, F.cross_entropy, samples(a), refit=refit, points=1)
        state = path(0.3)
        for tensor in state.values():
            tensor.zero_()
    again = path(0.3)
    assert any(bool(tensor.any()) for tensor in again.values())  # what is handed out is the caller's


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.skip = nn.Linear(5, 8), nn.Linear(8, 4), nn.Linear(5, 4)

    def forward(self, x):
        return self.down(F.relu(self.up(x))) + self.skip(x)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(14, 4)

    def forward(self, x):
        one = F.relu(self.first(x))
        return self.last(torch.cat([one, F.relu(self.second(one))], 1))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.down(F.relu(self.up(x))) - self.down(torch.tanh(self.up(x)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv1d(5, 8, 1), nn.Conv1d(8, 4, 1, groups=2)

    def forward(self, x):
        return self.down(F.relu(self.up(x[..., None]))).flatten(1)


@pytest.mark.parametrize(
    "make, message",
    [
        (Residual, r"Residual: enter: a residual stream"),
        (Shortcut, r"skip\.(weight|bias): differs in the two networks, and belongs neither .*its outputs must stay"),
        (Dense, r"Dense: first: last reads 14 channels, of which 8 are its units"),
        (Twice, r"Twice: up: one forward pass calls down, which reads its units, 2 times"),
        (Grouped, r"Grouped: up: a grouped convolution ties its units"),
        (lambda: nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4)), r"Sequential: no hidden"),
        (lambda: nn.Sequential(nn.Linear(5, 4)), r"Sequential: no hidden layer whose units could be moved"),
        (
            lambda: nn.Sequential(nn.Linear(5, 8), nn.PReLU(), nn.Linear(8, 4)),
            r"1\.weight: differs in the two networks",
        ),
    ],
)
def test_other_networks_are_refused_by_name(make, message) -> None:
    a, b = make(), shaken(make(), 3)
    with unchanged(a, b), pytest.raises(UnsupportedModelError, match=message):
        low_loss_path(a, b, F.cross_entropy, samples(a), aligned=False)


def test_a_prelu_for_each_unit_moves_with_it() -> None:
    a, b = (shaken(nn.Sequential(nn.Linear(5, 8), nn.PReLU(8), nn.Linear(8, 4)), seed) for seed in (1, 2))
    path = low_loss_path(a, b, F.cross_entropy, samples(a), points=2)
    assert path(0.4)["1.weight"].ne(a[1].weight).sum() == 4


def test_heads_are_refused() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24
    )
    a, b = (transformers.BertForSequenceClassification(config) for _ in range(2))
    data = [{"input_ids": torch.randint(30, (6, 5)), "labels": torch.randint(2, (6,))}]
    with pytest.raises(
        UnsupportedModelError, match=r"BertForSequenceClassification: .*attention.self: its units are heads"
    ):
        low_loss_path(a, b, lambda output, batch: output.loss, data, aligned=False)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda: mlp(9), r"b: expected the architecture of a; tensor 0\.weight: \(\(12, 5\)"),
        (lambda: mlp(12, 12), r"b: expected the architecture of a; module 3: none in a, ReLU in b"),
        (lambda: mlp(12).double(), r"b: expected the architecture of a; tensor 0\.weight"),
        (lambda: nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 4)), r"module 1: ReLU in a, Tanh in b"),
    ],
)
def test_another_architecture_is_refused(change, message) -> None:
    a = mlp(12)
    with pytest.raises(ValueError, match=message):
        low_loss_path(a, change(), F.cross_entropy, samples(a), aligned=False)


def test_another_function_of_the_same_parameters_is_refused() -> None:
    a, b = (nn.Sequential(nn.Linear(5, 8), nn.LeakyReLU(slope), nn.Linear(8, 4)) for slope in (0.01, 0.9))
    with pytest.raises(ValueError, match="b: expected what a computes with its parameters"):
        low_loss_path(a, b, F.cross_entropy, samples(a), aligned=False)


@pytest.mark.parametrize("name", ["points", "trials"])
def test_arguments_out_of_range(name: str) -> None:
    a, b = pair("two layers")
    with pytest.raises(ValueError, match=f"{name}: expected an integer >= 1, got 0"):
        low_loss_path(a, b, F.cross_entropy, samples(a), **{name: 0})
    path = low_loss_path(a, b, F.cross_entropy, samples(a), points=1, aligned=False)
    with pytest.raises(ValueError, match=r"t: expected a number in \[0, 1\], got 1.5"):
        path(1.5)
    with pytest.raises(ValueError, match=r"line: expected one of \['path', 'straight'\], got 'aligned'"):
        path(0.5, "aligned")


def test_without_scipy_the_message_says_what_to_do(monkeypatch) -> None:
    a, b = pair("two layers")
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"needs SciPy \(pip install scipy\), or leave it out with aligned=False"):
        low_loss_path(a, b, F.cross_entropy, samples(a))
    assert low_loss_path(a, b, F.cross_entropy, samples(a), aligned=False).aligned is None


def test_trained_networks_and_the_report(tmp_path) -> None:
    """A few steps of heavy ball at 200 units: the path lies far below the straight line, and refits lower still."""
    torch.manual_seed(0)
    x = torch.randn(300, 5)
    y = (x @ torch.randn(5, 4)).argmax(1)
    nets = []
    for _ in range(2):
        net = nn.Sequential(nn.Linear(5, 200), nn.Tanh(), nn.Linear(200, 4))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        nets.append(net)
    path = low_loss_path(*nets, F.cross_entropy, (x, y), refit=True, points=4)
    assert path.barrier < 0.25 * path.barrier_of("straight")
    plain = json.loads(json.dumps(path.to_plain()))
    assert plain["layers"] == {"0": 200}
    assert plain["barriers"]["path"] == path.barrier
    assert set(plain["barriers"]) == {"path", "straight", "aligned"}
    assert "path of 5 segments, outer weights refitted" in str(path)
    pytest.importorskip("matplotlib")
    assert path.plot(tmp_path / "new" / "path.png").read_bytes().startswith(b"\x89PNG")
    rescaled = dropout_stability(nets[0], F.cross_entropy, (x, y)).together.change
    refitted = dropout_stability(nets[0], F.cross_entropy, (x, y), refit=True).together.change
    assert refitted < rescaled
    assert sa.diagnostics.low_loss_path is low_loss_path
