"""CurvatureIHT on small models: which layers, which inputs, which Hessian, which weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparse_accel.prune import CurvatureIHT
from sparse_accel.prune.layerwise.solve import layerwise_solve
from sparse_accel.prune.unstructured.allocate import share_out
from sparse_accel.prune.unstructured.layers import matches


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 5))


def zeros(layer: nn.Module) -> int:
    return int((layer.weight == 0).sum())


def correlated(rows: int, features: int) -> torch.Tensor:
    return torch.randn(rows, features) @ torch.randn(features, features)


@torch.no_grad()
def output_error(dense: nn.Module, sparse: nn.Module, x: torch.Tensor) -> float:
    """Relative error of a convolution's outputs without the bias."""
    outputs = [
        net(x) - (0 if net.bias is None else net.bias.reshape(-1, *[1] * (x.dim() - 2))) for net in (dense, sparse)
    ]
    return float(((outputs[1] - outputs[0]) ** 2).sum() / (outputs[0] ** 2).sum())


# ---------------------------------------------------------------- one layer


@pytest.mark.parametrize("sparsity", [0.5, 0.7, "2:4"])
def test_a_single_layer_is_the_layer_solver(sparsity):
    net, x = nn.Linear(12, 8), correlated(200, 12)
    result = CurvatureIHT(net, sparsity).run(x)
    wide = x.split(128)
    hessian = sum((part.T @ part).double() for part in wide)
    expected = layerwise_solve(net.weight.detach(), hessian, sparsity)
    torch.testing.assert_close(result.model.weight.detach(), torch.as_tensor(expected), rtol=1e-4, atol=1e-5)
    assert torch.equal(result.model.bias, net.bias)
    change = (result.model.weight - net.weight).detach().double()
    error = ((x.double() @ change.T) ** 2).sum() / ((x.double() @ net.weight.detach().double().T) ** 2).sum()
    assert result.report[""].error == pytest.approx(float(error), rel=1e-4)
    assert result.report[""].columns == 200


def test_better_than_magnitude_and_sparsegpt():
    net, x = nn.Linear(32, 24), correlated(500, 32)
    errors = {m: CurvatureIHT(net, 0.5, method=m).run(x).report[""].error for m in ("iht", "sparsegpt", "magnitude")}
    assert errors["iht"] < errors["sparsegpt"] < errors["magnitude"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_kept(dtype):
    net, x = nn.Linear(12, 8).to(dtype), correlated(64, 12).to(dtype)
    result = CurvatureIHT(net, 0.5).run(x)
    assert result.model.weight.dtype == dtype
    assert zeros(result.model) == 48


# ---------------------------------------------------------------- convolutions


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.Conv2d(3, 6, (3, 2), padding=(1, 0), dilation=2, padding_mode="circular"),
        nn.Conv1d(3, 6, 3, padding="same", padding_mode="reflect"),
        nn.Conv3d(2, 4, 2),
    ],
    ids=["strided", "dilated", "conv1d", "conv3d"],
)
def test_convolutions_minimize_their_output_error(conv):
    dims = conv.weight.dim() - 2
    x = torch.randn(20, conv.in_channels, *[7] * dims).cumsum(-1)  # neighbours alike: magnitudes tell little
    result = CurvatureIHT(conv, 0.5).run(x)
    assert zeros(result.model) == conv.weight.numel() // 2
    weight = conv.weight.detach()
    error = output_error(conv, result.model, x)
    assert result.report[""].error == pytest.approx(error, rel=1e-3)
    cut = copy.deepcopy(conv)
    threshold = weight.abs().flatten().kthvalue(weight.numel() // 2).values
    cut.weight.data[weight.abs() <= threshold] = 0
    assert error < output_error(conv, cut, x)


def test_conv_hessian_is_that_of_unfolded_inputs():
    conv, x = nn.Conv2d(3, 6, 3, stride=2, padding=1), torch.randn(10, 3, 9, 9)
    result = CurvatureIHT(conv, 0.5).run([x[:5], x[5:]])
    unfolded = F.unfold(x.double(), 3, padding=1, stride=2).transpose(0, 1).reshape(27, -1)
    expected = layerwise_solve(conv.weight.detach().reshape(6, 27), unfolded @ unfolded.T, 0.5)
    torch.testing.assert_close(
        result.model.weight.detach().reshape(6, 27), torch.as_tensor(expected), rtol=1e-3, atol=1e-4
    )


def test_grouped_convolution_has_one_hessian_per_group():
    conv = nn.Conv2d(4, 8, 3, groups=2, bias=False)
    x = torch.randn(30, 4, 6, 6)
    x[:, 2:] *= 10  # the second group's outputs matter more: it keeps more
    result = CurvatureIHT(conv, 0.5).run(x)
    weight = result.model.weight
    assert zeros(result.model) == weight.numel() // 2
    assert int((weight[4:] != 0).sum()) > int((weight[:4] != 0).sum())
    assert result.report[""].error == pytest.approx(output_error(conv, result.model, x), rel=1e-3)


def test_depthwise_convolution():
    conv = nn.Conv2d(6, 6, 3, groups=6)
    result = CurvatureIHT(conv, 0.5).run(torch.randn(10, 6, 8, 8))
    assert zeros(result.model) == 27


def test_n_of_m_in_every_group():
    conv = nn.Conv2d(8, 8, 2, groups=2)
    weight = CurvatureIHT(conv, "2:4").run(torch.randn(10, 8, 8, 8)).model.weight
    assert torch.equal((weight != 0).sum(1), torch.full((8, 2, 2), 2))  # of four input channels at every tap


# ---------------------------------------------------------------- whole models


def test_the_front_is_pruned_when_a_layer_is_solved():
    net, x = mlp(), correlated(300, 12)
    result = CurvatureIHT(net, 0.5).run(x)
    front = nn.Sequential(*list(result.model)[:4])
    with torch.no_grad():
        inputs = [front(part).double() for part in x.split(128)]
    hessian = sum(part.T @ part for part in inputs)
    expected = layerwise_solve(net[4].weight.detach(), hessian, 0.5)
    torch.testing.assert_close(result.model[4].weight.detach(), torch.as_tensor(expected), rtol=1e-3, atol=1e-4)
    assert [layer.name for layer in result.report.layers] == ["0", "2", "4"]
    assert result.report.sparsity == 0.5


def test_the_model_is_left_alone_and_modes_are_kept():
    net, x = mlp(), correlated(64, 12)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    net[2].eval()
    before = copy.deepcopy(net.state_dict())
    result = CurvatureIHT(net, 0.5).run(x)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert net.training
    assert not net[2].training
    assert result.model.training
    assert not result.model[2].training
    assert result.model[0].weight.grad is None
    assert not result.model[0]._forward_hooks


@pytest.mark.parametrize("activation_memory", [0, 3000, 1 << 20], ids=["none", "too little", "enough"])
def test_replayed_fronts_give_the_same_bits(activation_memory):
    net, x = mlp(), correlated(64, 12)
    plain = CurvatureIHT(net, 0.5, activation_memory=0).run(x).model
    other = CurvatureIHT(net, 0.5, activation_memory=activation_memory).run(x).model
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


class Skipping(nn.Module):
    """Reads the first block's output again at the end: the front cannot be replayed from the last block alone."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        first = x = self.blocks[0](x)
        for block in list(self.blocks)[1:]:
            x = F.relu(block(x))
        return self.head(x + first)


def test_long_skips_fall_back_to_whole_fronts():
    net, x = Skipping(), correlated(64, 8)
    plain = CurvatureIHT(net, 0.5, activation_memory=0).run(x).model
    other = CurvatureIHT(net, 0.5).run(x).model
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_shuffled_data_is_noticed():
    net, x = mlp(), correlated(64, 12)
    turn = [0]

    def fresh():
        turn[0] += 1
        return [part + turn[0] for part in x.split(16)]

    result = CurvatureIHT(net, 0.5).run(fresh)
    assert result.report.sparsity == 0.5


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x, mask=None):
        scores = self.query(x) @ self.key(x).mT
        if mask is not None:
            scores = scores.masked_fill(mask[:, None] == 0, -1e9)
        return self.out(scores.softmax(-1) @ self.value(x))


def test_layers_with_the_same_input_share_a_hessian(monkeypatch):
    from sparse_accel.prune.unstructured import pruner

    seen = []
    original = pruner.hessian_of
    monkeypatch.setattr(
        pruner,
        "hessian_of",
        lambda *args: seen.append([layer.name for layer in args[2].layers]) or original(*args),
    )
    CurvatureIHT(Attention(), 0.5).run(torch.randn(10, 5, 8))
    assert seen == [["query", "key", "value"], ["out"]]


def test_an_input_changed_in_place_is_another_input(monkeypatch):
    from sparse_accel.prune.unstructured import pruner

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = x + 0
            y = self.a(x)
            x.mul_(2)
            return y + self.b(x)

    names = []
    original = pruner.hessian_of
    monkeypatch.setattr(pruner, "hessian_of", lambda *args: names.append(args[2].name) or original(*args))
    CurvatureIHT(Net(), 0.5).run(torch.randn(10, 4))
    assert names == ["a", "b"]


class Shared(nn.Module):
    """One module called twice, and two modules with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(6, 6)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x):
        x = self.twice(F.relu(self.twice(x)))
        return self.second(F.relu(self.first(x)))


def test_shared_weights_are_solved_once_with_all_inputs():
    net, x = Shared(), correlated(100, 6)
    result = CurvatureIHT(net, 0.5).run(x)
    assert [layer.modules for layer in result.report.layers] == [("twice",), ("first", "second")]
    assert [layer.columns for layer in result.report.layers] == [200, 200]
    assert result.model.second.weight is result.model.first.weight
    with torch.no_grad():
        inputs = torch.cat([x, F.relu(net.twice(x))]).double()
    expected = layerwise_solve(net.twice.weight.detach(), inputs.T @ inputs, 0.5)
    torch.testing.assert_close(result.model.twice.weight.detach(), torch.as_tensor(expected), rtol=1e-3, atol=1e-4)
    assert list(result.masks) == ["twice.weight", "first.weight"]


def test_tuple_and_dict_inputs_and_padding():
    net, x = Attention(), torch.randn(12, 5, 8)
    mask = (torch.arange(5) < torch.randint(1, 6, (12, 1))).long()
    tuples = CurvatureIHT(net, 0.5).run([(x[:6], mask[:6]), (x[6:], mask[6:])])
    assert tuples.report["query"].columns == 60
    dicts = CurvatureIHT(net, 0.5, padding="mask").run([{"x": x, "mask": mask}])
    assert dicts.report["query"].columns == dicts.report["out"].columns == int(mask.sum())
    changed = x + 100 * (1 - mask[:, :, None])
    other = CurvatureIHT(net, 0.5, padding="mask").run([{"x": changed, "mask": mask}])
    assert other.report["query"].error == pytest.approx(dicts.report["query"].error, rel=1e-4)


def test_one_shot_iterators_are_read_once():
    x = correlated(40, 12)
    result = CurvatureIHT(mlp(), 0.5).run(iter(x.split(10)))
    assert result.report["4"].columns == 40


# ---------------------------------------------------------------- which layers


@pytest.mark.parametrize(
    "name, pattern, expected",
    [
        ("lm_head", "lm_head", True),
        ("model.lm_head", "lm_head", True),
        ("classifier.0", "classifier", True),
        ("classifiers", "classifier", False),
        ("encoder.layer.1.output.dense", "layer.1", True),
        ("encoder.layer.11.output.dense", "layer.1", False),
        ("encoder.layer.11.output.dense", "*.output.dense", True),
        ("encoder.layer.11.output.dense", "layer.1[01]", True),
        ("", "*", True),
    ],
)
def test_patterns(name, pattern, expected):
    assert matches(name, pattern) is expected


def test_targets_and_skip():
    net, x = mlp(), correlated(64, 12)
    only = CurvatureIHT(net, 0.5, targets=["2", "4"]).run(x)
    assert [layer.name for layer in only.report.layers] == ["2", "4"]
    own = CurvatureIHT(net, targets={"*": 0.5, "0": None, "4": 0.8}).run(x)
    assert {layer.name: round(layer.sparsity, 2) for layer in own.report.layers} == {"2": 0.5, "4": 0.8}
    skipped = CurvatureIHT(net, 0.5, skip=["4"]).run(x)
    assert [layer.name for layer in skipped.report.layers] == ["0", "2"]
    assert skipped.report.left == {"4": "skip"}
    named = nn.Sequential()
    named.add_module("body", nn.Linear(12, 4))
    named.add_module("classifier", nn.Linear(4, 2))
    assert [layer.name for layer in CurvatureIHT(named, 0.5).run(x).report.layers] == ["body"]


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.tied = nn.Linear(6, 10, bias=False)
        self.tied.weight = self.embedding.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.plain = nn.Linear(6, 6)
        self.idle = nn.Linear(6, 6)

    def forward(self, x):
        return self.tied(self.normed(self.plain(self.embedding(x))))


def test_what_cannot_be_pruned_is_left_or_refused():
    net, x = Odd(), torch.randint(0, 10, (8, 4))
    report = CurvatureIHT(net, 0.5).run([x]).report
    assert [layer.name for layer in report.layers] == ["plain"]
    assert set(report.left) == {"tied", "normed", "idle"}
    assert "left dense: idle: the forward pass does not call it" in str(report)
    for name, message in [
        ("tied", "also that of embedding"),
        ("normed", "parametrization"),
        ("embedding", "expected a Linear"),
        ("absent", "matches no Linear"),
    ]:
        with pytest.raises(ValueError, match=f"targets.*{name}.*{message}"):
            CurvatureIHT(net, 0.5, targets=[name])
    with pytest.raises(ValueError, match=r"idle.*does not call it"):
        CurvatureIHT(net, 0.5, targets=["idle"]).run([x])


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"model": "net"}, TypeError, "model: expected a torch.nn.Module"),
        ({"model": nn.ReLU()}, ValueError, "at least one"),
        ({"allocation": "even"}, ValueError, "allocation: expected"),
        ({"max_memory": "1 GB"}, ValueError, "max_memory"),
        ({"activation_memory": None}, ValueError, "activation_memory"),
        ({"refine": -1}, ValueError, "refine"),
        ({"refine": True}, ValueError, "refine"),
        ({"dtype": torch.float16}, ValueError, "dtype"),
        ({"targets": 3}, TypeError, "targets"),
        ({"targets": [3]}, TypeError, "targets"),
        ({"skip": "lm_head"}, TypeError, "skip"),
    ],
)
def test_arguments_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        CurvatureIHT(**{"model": nn.Linear(3, 2), **options})


@pytest.mark.parametrize(
    "sparsity, data, message",
    [
        (1.5, torch.randn(8, 12), r"0 \(Linear\).*sparsity"),
        ("5:4", torch.randn(8, 12), r"0 \(Linear\).*sparsity"),
        (0.5, [], "at least one batch"),
        (0.5, torch.randn(8, 12) * float("nan"), r"0 \(Linear\)"),
    ],
)
def test_failures_name_the_layer_and_change_nothing(sparsity, data, message):
    net = mlp()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=message):
        CurvatureIHT(net, sparsity).run(data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_models_that_cannot_be_copied():
    net = nn.Linear(4, 2)
    net.cached = net.weight * 2
    with pytest.raises(ValueError, match=r"model \(Linear\): cached.* cannot be copied"):
        CurvatureIHT(net, 0.5).run(torch.randn(8, 4))


class Residual(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.linear, self.in_place = nn.Linear(6, 6), in_place

    def forward(self, x):
        y = F.relu(self.linear(x))
        return x.add_(y) if self.in_place else x + y


@pytest.mark.parametrize("in_place", [False, True])
def test_residual_blocks(in_place, caplog):
    net, x = nn.Sequential(*[Residual(in_place) for _ in range(4)]), correlated(40, 6)

    def data() -> list[torch.Tensor]:
        return [part.clone() for part in x.split(10)]

    plain = CurvatureIHT(net, 0.5, activation_memory=0).run(data).model
    with caplog.at_level("INFO", "sparse_accel"):
        other = CurvatureIHT(net, 0.5).run(data).model
    assert any("changes its inputs" in message for message in caplog.messages) == in_place
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_memory_is_stated_and_bounded(caplog):
    net, x = mlp(), correlated(16, 12)
    with caplog.at_level("INFO", "sparse_accel"):
        report = CurvatureIHT(net, 0.5).run(x).report
    assert report.memory > 0
    assert any("CurvatureIHT: a copy of the model" in message for message in caplog.messages)
    with pytest.raises(ValueError, match="max_memory: expected at least"):
        CurvatureIHT(net, 0.5, max_memory=1000).run(x)


def test_report_prints_a_table():
    text = str(CurvatureIHT(mlp(), 0.5).run(correlated(64, 12)).report)
    assert "sparsity" in text
    assert "16×12" in text
    assert "50.00 %" in text


# ---------------------------------------------------------------- global allocation


def test_global_allocation_keeps_the_total_and_follows_the_errors():
    net, x = mlp(), correlated(300, 12)
    with torch.no_grad():  # a layer of rank 1: half of its weights are hardly missed... by its outputs
        net[2].weight[:, 8:] *= 1e-3
    uniform = CurvatureIHT(net, 0.6).run(x)
    result = CurvatureIHT(net, 0.6, allocation="global").run(x)
    total = sum(layer.weight.numel() for layer in (net[0], net[2], net[4]))
    assert sum(zeros(result.model[i]) for i in (0, 2, 4)) == round(0.6 * total)
    assert result.report["2"].sparsity > 0.6 > result.report["0"].sparsity
    assert sum(layer.error for layer in result.report.layers) < sum(layer.error for layer in uniform.report.layers)


def test_global_allocation_needs_numbers():
    with pytest.raises(ValueError, match=r"allocation.*0 \(Linear\)"):
        CurvatureIHT(mlp(), "2:4", allocation="global").run(correlated(16, 12))


@pytest.mark.parametrize("removed", [0, 1, 57, 100, 299, 300])
def test_share_out_is_exact_and_bounded(removed):
    curves = {name: [(0.0, 0.0), (0.5, error), (1.0, 1.0)] for name, error in (("a", 0.01), ("b", 0.2), ("c", 0.2))}
    counts = share_out(curves, {"a": 100, "b": 120, "c": 80}, removed)
    assert sum(counts.values()) == removed
    assert all(0 <= counts[name] <= size for name, size in (("a", 100), ("b", 120), ("c", 80)))
