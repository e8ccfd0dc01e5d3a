"""sa.accelerate: what is chosen, what is left and why, the same outputs, the way back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import sparse_accel as sa
from sparse_accel._modes import layer_by_layer
from sparse_accel.acceleration import accelerate as module_under_test
from sparse_accel.acceleration.layers import BitmaskLayer, CSRLayer, SparseLayer


def thin(module: nn.Module, zeros: float = 0.7, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.dim() > 1:
            weight.data[torch.rand(weight.shape, generator=generator) < zeros] = 0
    return module


class Net(nn.Module):
    """Linear layers, 1 × 1 convolutions with and without strides, and what has to stay dense."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Conv2d(6, 16, 1)
        self.strided = nn.Conv2d(16, 12, 1, stride=2, bias=False)
        self.taps = nn.Conv2d(12, 12, 3, padding=1)
        self.first = nn.Linear(12, 40)
        self.second = nn.Linear(40, 9, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.taps(self.strided(self.point(x).relu()))
        return self.second(self.first(x.mean((2, 3))).relu())


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the clock find a form faster than the others."""

    def choose(form: str, whole: float = 2.0) -> None:
        def layers(forms: Mapping[str, nn.Module], *_: Any) -> Any:
            return {name: 5.0 if name == form else 10.0 for name in forms}

        def turns(runs: Mapping[str, Any], **_: Any) -> dict[str, list[float]]:
            for run in runs.values():
                run()
            return {name: [1.0 if name == "sparse" else whole] for name in runs}

        monkeypatch.setattr(module_under_test, "layer_times", layers)
        monkeypatch.setattr(module_under_test, "times_in_turns", turns)

    return choose


@pytest.mark.parametrize("form", ["bitmask", "csr"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_the_same_outputs_and_the_way_back(chosen: Any, form: str, memory: torch.memory_format) -> None:
    chosen(form)
    net = thin(Net()).eval()
    x = torch.randn(3, 6, 8, 8).contiguous(memory_format=memory)
    before = copy.deepcopy(net.state_dict())
    result = sa.accelerate(net, x)
    kind = BitmaskLayer if form == "bitmask" else CSRLayer
    names = [name for name, module in result.model.named_modules() if isinstance(module, kind)]
    assert names == ["point", "strided", "first", "second"]
    assert set(result.report.left) == {"taps"}
    assert [layer.chosen for layer in result.report.layers] == [form] * 4
    torch.testing.assert_close(result.model(x), net(x), rtol=1e-5, atol=1e-5)
    for name in ("point", "strided"):
        given = torch.randn(2, 6 if name == "point" else 16, 7, 5).contiguous(memory_format=memory)
        dense, sparse = net.get_submodule(name)(given), result.model.get_submodule(name)(given)
        torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-5)
        assert sparse.is_contiguous(memory_format=memory)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    back = sa.densify(result)
    assert [type(module) for module in back.modules()] == [type(module) for module in net.modules()]
    assert all(torch.equal(before[key], value) for key, value in back.state_dict().items())
    assert list(back.state_dict()) == list(net.state_dict())
    assert torch.equal(back(x), net(x))
    assert "left dense: taps: a convolution of more than one tap" in str(result.report)
    assert result.report.to_plain()["layers"][0]["chosen"] == form


def test_conv1d_of_hugging_face(chosen: Any) -> None:
    from transformers.pytorch_utils import Conv1D

    chosen("bitmask")
    net = thin(nn.Sequential(Conv1D(24, 10), nn.GELU(), Conv1D(10, 24)))
    x = torch.randn(2, 5, 10)
    result = sa.accelerate(net, x)
    assert isinstance(result.model[0], BitmaskLayer)  # type: ignore[index]
    torch.testing.assert_close(result.model(x), net(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(result.model[0].weight, net[0].weight)  # type: ignore[index, union-attr]
    back = sa.densify(result)
    assert type(back[0]) is Conv1D  # type: ignore[index]
    assert torch.equal(back(x), net(x))


def test_one_dimension_and_no_batch(chosen: Any) -> None:
    chosen("bitmask")
    for net, x in ((nn.Conv1d(6, 8, 1), torch.randn(6, 9)), (nn.Conv3d(4, 6, 1, stride=(1, 2, 3)), torch.randn(2, 4, 3, 5, 7))):  # fmt: skip # noqa: E501
        result = sa.accelerate(thin(net), x)
        assert isinstance(result.model, BitmaskLayer)
        torch.testing.assert_close(result.model(x), net(x), rtol=1e-5, atol=1e-5)
        assert torch.equal(sa.densify(result).weight, net.weight)  # type: ignore[arg-type]


def test_nothing_is_chosen_that_does_not_gain(chosen: Any) -> None:
    net, x = thin(Net()), torch.randn(1, 6, 8, 8)
    chosen("nothing")
    result = sa.accelerate(net, x)
    assert not any(isinstance(module, SparseLayer) for module in result.model.modules())
    assert {layer.chosen for layer in result.report.layers} == {"dense"}
    assert "would gain 1.00×" in str(result.report)
    chosen("bitmask", whole=0.5)  # every layer gains, and the model does not
    result = sa.accelerate(net, x)
    assert not any(isinstance(module, SparseLayer) for module in result.model.modules())
    assert "the model as a whole was not faster: every layer is dense" in result.report.notes
    assert {layer.chosen for layer in result.report.layers} == {"dense"}


def test_what_stays_dense_is_named(chosen: Any) -> None:
    chosen("bitmask")

    class Own(nn.Linear):
        pass

    net = nn.ModuleDict(
        {
            "plain": nn.Linear(8, 8),
            "tied": nn.Linear(8, 8),
            "head": nn.Linear(8, 8),
            "hooked": nn.Linear(8, 8),
            "normed": parametrizations.weight_norm(nn.Linear(8, 8)),
            "own": Own(8, 8),
            "wide": nn.Linear(8, 8).double(),
            "full": nn.Linear(8, 8),
            "idle": nn.Linear(8, 8),
            "twice": nn.Linear(8, 8),
        }
    )
    thin(net, 0.5)
    nn.init.ones_(net["full"].weight)  # type: ignore[arg-type]
    net["head"].weight = net["tied"].weight
    net["hooked"].register_forward_hook(lambda *_: None)
    net["again"] = net["twice"]
    net["patched"] = thin(nn.Linear(8, 8))
    net["patched"].forward = nn.functional.relu  # type: ignore[method-assign]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = net

        def forward(self, x: Tensor) -> Tensor:
            for name in self.parts:
                if name != "idle":
                    x = self.parts[name](x.to(torch.float64 if name == "wide" else torch.float32))
            return x

    result = sa.accelerate(Whole(), torch.randn(2, 8))
    assert [layer.name for layer in result.report.layers] == ["parts.plain"]
    left = {name.removeprefix("parts."): reason for name, reason in result.report.left.items()}
    assert left.pop("tied") == left.pop("head") == "its weight or bias is shared with another module"
    expected = {
        "hooked": "it has hooks",
        "normed": "its weight is parametrized",
        "own": "a Own, which may do more than its base class",
        "wide": "its weight is torch.float64",
        "full": "fewer than 5 % of its weights are zero",
        "idle": "the example does not call it",
        "twice": "the module is used under several names",
        "patched": "its forward was replaced",
    }
    assert {name: left[name] for name in expected} == expected


def test_never_slower_by_the_clock() -> None:
    """A layer that cannot gain stays dense: nothing but bits is saved of one with few zeros and a large batch."""
    net = thin(nn.Sequential(nn.Linear(64, 64)), 0.06)
    result = sa.accelerate(net, torch.randn(2048, 64), budget_s=0.05)
    layer = result.report.layers[0]
    assert layer.chosen == "dense" or layer.gain >= 1.1
    assert set(layer.us) == {"dense", "bitmask", "csr"}


def test_a_large_layer_gains() -> None:
    torch.manual_seed(0)
    net = thin(nn.Sequential(nn.Linear(1024, 2048)), 0.9)
    result = sa.accelerate(net, torch.randn(4, 1024), budget_s=0.3)
    layer = result.report.layers[0]
    assert layer.chosen != "dense"
    assert layer.gain > 1
    assert layer.bytes[1] < 0.3 * layer.bytes[0]


def test_results_and_modes(chosen: Any) -> None:
    chosen("bitmask")
    net = thin(nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 4)))
    net[0].eval()
    net[2].weight.requires_grad_(False)
    compacted = sa.compact(net, torch.randn(2, 12))
    result = sa.accelerate(compacted, torch.randn(2, 12))
    assert [module.training for module in result.model.children()] == [False, True, True]
    assert [module.values.requires_grad for module in result.model if isinstance(module, SparseLayer)] == [True, False]


def test_int8(chosen: Any) -> None:
    chosen("bitmask")
    net, x = thin(nn.Sequential(nn.Linear(300, 64), nn.ReLU(), nn.Linear(64, 9))), torch.randn(4, 300)
    result = sa.accelerate(net, x, int8=True)
    assert [module.values.dtype for module in result.model if isinstance(module, BitmaskLayer)] == [torch.int8] * 2
    torch.testing.assert_close(result.model(x), net(x), rtol=0.05, atol=0.02)
    assert 0 < result.report.max_abs_diff < 0.05
    dense = sa.densify(result)
    assert dense[0].weight.dtype == torch.float32  # type: ignore[index]
    torch.testing.assert_close(dense(x), result.model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["bitmask", "csr"])
def test_training_deepcopy_pickle_and_state(chosen: Any, form: str) -> None:
    chosen(form)
    torch.manual_seed(0)
    net, x = thin(nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))), torch.randn(8, 20)
    model = sa.accelerate(net, x).model
    kept = [layer.weight != 0 for layer in (net[0], net[2])]
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(own.parameters(), lr=0.05) for own in (net, model)]
    for _ in range(3):
        for own, optimizer in zip((net, model), optimizers, strict=True):
            optimizer.zero_grad()
            own(x).square().sum().backward()
            for layer, mask in zip((own[0], own[2]), kept, strict=True):  # type: ignore[index]
                if isinstance(layer, nn.Linear) and layer.weight.grad is not None:
                    layer.weight.grad.mul_(mask)
            optimizer.step()
    for layer, dense in ((model[0], net[0]), (model[2], net[2])):  # type: ignore[index]
        torch.testing.assert_close(layer.weight, dense.weight, rtol=1e-4, atol=1e-5)
    assert not torch.equal(twin(x), model(x))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_and_autocast(chosen: Any, dtype: torch.dtype) -> None:
    """Offsets depend on the values' size: a cast model has to compute the same as a cast dense one."""
    chosen("bitmask")
    net, x = thin(nn.Sequential(nn.Linear(300, 70), nn.ReLU(), nn.Linear(70, 9))), torch.randn(4, 300)
    model = sa.accelerate(net, x).model
    with torch.autocast("cpu", dtype):
        assert model(x).dtype == net(x).dtype == dtype
        torch.testing.assert_close(model(x).float(), net(x).float(), rtol=3e-2, atol=2e-2)
    cast, expected = copy.deepcopy(model).to(dtype), copy.deepcopy(net).to(dtype)
    assert torch.equal(sa.densify(cast)[0].weight, expected[0].weight)  # type: ignore[index]
    torch.testing.assert_close(cast(x.to(dtype)), expected(x.to(dtype)), rtol=3e-2, atol=2e-2)
    torch.testing.assert_close(cast.float()(x), expected.float()(x), rtol=1e-4, atol=1e-5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(TypeError, match=r"values: expected float32, bfloat16 or float16, got torch\.float64"):
        model.double()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items() if "0." in key)


def test_compile_and_export(chosen: Any) -> None:
    chosen("bitmask")
    net, x = thin(nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))).eval(), torch.randn(8, 20)
    model = sa.accelerate(net, x).model
    with torch.no_grad():
        expected = model(x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    compiled(x).sum().backward()
    assert model[0].values.grad is not None  # type: ignore[index, union-attr]
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: rows},))
    torch.testing.assert_close(program.module()(torch.cat([x, x]))[:8], expected)
    chosen("csr")
    model = sa.accelerate(net, x).model
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


def test_broken_state_is_refused(chosen: Any) -> None:
    chosen("bitmask")
    net, x = thin(nn.Sequential(nn.Linear(20, 16))), torch.randn(8, 20)
    model = sa.accelerate(net, x).model
    state = copy.deepcopy(model.state_dict())
    state["0.offsets"] += 1
    before = model(x)
    with pytest.raises(RuntimeError, match="0: offsets: expected those of the bits, got others"):
        model.load_state_dict(state)
    assert torch.equal(model(x), before)
    half = copy.deepcopy(model).bfloat16()
    with pytest.raises(RuntimeError, match=r"values: expected torch\.float32 as the layer has, got torch\.bfloat16"):
        model.load_state_dict(half.state_dict())
    other = sa.accelerate(thin(nn.Sequential(nn.Linear(20, 16)), 0.3, 5), x).model
    model.load_state_dict(other.state_dict())  # another number of kept weights
    assert torch.equal(model(x), other(x))


def test_errors() -> None:
    net, x = nn.Sequential(nn.Linear(3, 2)), torch.randn(1, 3)
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module or a result that has one, got int"):
        sa.accelerate(3, x)
    for value in (0.9, float("nan"), float("inf"), True, "2"):
        with pytest.raises(ValueError, match="min_gain: expected a number from 1 on, got"):
            sa.accelerate(net, x, value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="budget_s: expected a number from 0 on, got -1"):
        sa.accelerate(net, x, budget_s=-1)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        sa.accelerate(net, torch.randn(1, 4))
    with pytest.raises(TypeError, match="model: expected"):
        sa.densify(None)
    assert not net[0]._forward_pre_hooks


def test_in_a_transformer(chosen: Any) -> None:
    """Torch's fast path reads ``weight`` itself."""
    chosen("bitmask")
    torch.manual_seed(0)
    net = thin(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)).train()
    x = torch.randn(2, 5, 16)
    with layer_by_layer():
        result = sa.accelerate(net, x)
    assert {layer.name for layer in result.report.layers} == {"layers.0.linear1", "layers.0.linear2"}
    net.eval()
    result.model.eval()
    torch.testing.assert_close(result.model(x), net(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), net(x), rtol=1e-4, atol=1e-5)
