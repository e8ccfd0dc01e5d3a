"""Compaction is exact on every topology, and leaves the given model alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compact_models import CASES, BasicBlock, LeNet, Mlp, ResNet, Vgg, randomize, silent, unread
from torch import Tensor, nn
from torch.nn.utils import prune

from sparse_accel.compact import CompactError, CompactResult, OutputMismatchError, UnsupportedModelError, compact
from sparse_accel.prune.call import run_model, tree_tensors


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that compaction must not touch."""
    return {
        "tensors": {name: (id(t), t.detach().clone()) for name, t in model.state_dict(keep_vars=True).items()},
        "repr": repr(model),
        "training": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    assert [before[key] for key in ("repr", "training", "hooks")] == [
        after[key] for key in ("repr", "training", "hooks")
    ]
    assert before["tensors"].keys() == after["tensors"].keys()
    for name, (identity, value) in before["tensors"].items():
        assert after["tensors"][name][0] == identity, name
        assert torch.equal(after["tensors"][name][1], value), name


def compact_checked(model: nn.Module, example: Any, **options: Any) -> CompactResult:
    """Compact, and check that the model is unchanged and that outputs agree on other inputs."""
    before = snapshot(model)
    result = compact(model, example, **options)
    assert_unchanged(model, before)
    assert_same_outputs(model, result.model, example)
    return result


def assert_same_outputs(model: nn.Module, small: nn.Module, example: Any, tolerance: float = 2e-5) -> None:
    """Outputs of two models in eval mode on inputs that compaction never saw."""
    generator = torch.Generator().manual_seed(11)

    def other(item: Any) -> Any:
        if isinstance(item, Tensor) and item.is_floating_point():
            return (3 * torch.randn(item.shape, generator=generator)).to(item)
        return item

    if isinstance(example, dict):
        fresh: Any = {key: other(item) for key, item in example.items()}
    else:
        fresh = tuple(map(other, example)) if isinstance(example, tuple) else other(example)
    with torch.no_grad():
        outputs = [list(tree_tensors(run_model(copy.deepcopy(net).eval(), fresh))) for net in (model, small)]
    assert len(outputs[0]) == len(outputs[1]) > 0
    for old, new in zip(*outputs, strict=True):
        torch.testing.assert_close(new, old, rtol=tolerance, atol=tolerance * float(old.abs().max()))


def widths(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(input, output) channels of every layer."""
    out = {}
    for name, module in model.named_modules():
        for keys in (("in_features", "out_features"), ("in_channels", "out_channels")):
            if hasattr(module, keys[0]):
                out[name] = (getattr(module, keys[0]), getattr(module, keys[1]))
    return out


@pytest.mark.parametrize("name", CASES)
def test_topology(name: str) -> None:
    case = CASES[name]
    model = randomize(case.build())
    case.plant(model)
    result = compact_checked(model, case.example())
    came = widths(result.model)
    assert {key: came[key] for key in case.widths} == case.widths
    assert result.report.params[1] < result.report.params[0]
    for name, module in result.model.named_modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            rebuilt = type(module)(**_arguments(module))
            assert rebuilt.weight.shape == module.weight.shape, name


def _arguments(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, nn.Linear):
        return {"in_features": module.in_features, "out_features": module.out_features}
    return {
        "in_channels": module.in_channels,
        "out_channels": module.out_channels,
        "kernel_size": module.kernel_size,
        "groups": module.groups,
    }


@pytest.mark.parametrize("name", CASES)
def test_nothing_to_remove(name: str) -> None:
    case = CASES[name]
    model = randomize(case.build())
    result = compact_checked(model, case.example())
    assert result.plan["tensors"] == {}
    assert result.max_abs_diff == 0
    assert widths(result.model) == widths(model)


@pytest.mark.parametrize("name", ["mlp", "resnet", "depthwise_multiplier", "resnext", "transposed_grouped", "gated"])
def test_everything_zero_keeps_a_channel_per_layer(name: str) -> None:
    case = CASES[name]
    model = randomize(case.build())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    result = compact_checked(model, case.example())
    assert all(min(width) >= 1 for width in widths(result.model).values())
    assert result.report.params[1] < result.report.params[0] / 2


def test_whole_group_of_a_transposed_convolution_goes() -> None:
    model = randomize(
        nn.Sequential(
            nn.Conv2d(2, 4, 1),
            nn.ConvTranspose2d(4, 8, 2, groups=2),
            nn.ConvTranspose2d(8, 6, 2, groups=2),
            nn.Conv2d(6, 2, 1),
        )
    )
    unread(model[2], (1, 6))
    unread(model[3], (0, 1, 2))
    small = compact_checked(model, torch.randn(2, 2, 5, 5)).model
    assert widths(small) == {"0": (2, 2), "1": (2, 3), "2": (3, 3), "3": (3, 2)}
    assert small[1].groups == small[2].groups == 1


@pytest.mark.parametrize("training", [True, False])
def test_mode_comes_back(training: bool) -> None:
    model = randomize(Vgg()).train(training)
    model.features[1].eval()
    CASES["vgg"].plant(model)
    result = compact_checked(model, CASES["vgg"].example())
    assert [m.training for m in result.model.modules()] == [m.training for m in model.modules()]


def test_unread_channels_are_exact_in_train_mode() -> None:
    model = randomize(ResNet()).train()
    CASES["resnet"].plant(model)
    small = compact(model, CASES["resnet"].example()).model
    x = CASES["resnet"].example()
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
    kept = [i for i in range(8) if i not in (0, 1)]
    torch.testing.assert_close(small.bn.running_mean, model.bn.running_mean[kept])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mlp", "vgg", "resnet"])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    model = randomize(case.build()).to(dtype)
    case.plant(model)
    result = compact(model, case.example().to(dtype))
    came = widths(result.model)
    assert {key: came[key] for key in case.widths} == case.widths
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    if dtype == torch.float64:
        assert_same_outputs(model, result.model, case.example().to(dtype), 1e-12)


def test_channels_last() -> None:
    case = CASES["resnet"]
    model = randomize(case.build()).to(memory_format=torch.channels_last)
    case.plant(model)
    example = case.example().to(memory_format=torch.channels_last)
    small = compact_checked(model, example).model
    weight = small.block2.conv2.weight
    assert weight.shape == (11, 12, 3, 3)
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_gradients_are_cut_too() -> None:
    model = randomize(Mlp())
    CASES["mlp"].plant(model)
    model(CASES["mlp"].example()).sum().backward()
    model.a.bias.requires_grad_(False)
    small = compact(model, CASES["mlp"].example()).model
    keep = [1, 2, 4, 6]
    assert torch.equal(small.a.weight.grad, model.a.weight.grad[keep])
    assert not small.a.bias.requires_grad


def test_unbatched_linear_and_leading_dimensions() -> None:
    model = randomize(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    unread(model[2], (1, 2))
    for shape in ((4,), (2, 4), (2, 3, 5, 4)):
        assert widths(compact_checked(model, torch.randn(shape)).model)["0"] == (4, 4)


def test_linear_on_another_dimension_keeps_the_channels() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.channels, self.tokens, self.head = nn.Linear(4, 6), nn.Linear(5, 7), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.tokens(torch.relu(self.channels(x)).transpose(1, 2)).transpose(1, 2)
            return self.head(torch.relu(x).mean(1))

    model = randomize(Mixer())
    unread(model.head, (1,))
    result = compact_checked(model, torch.randn(2, 5, 4))
    assert widths(result.model)["channels"] == (4, 6)
    assert any("tokens" in note for note in result.plan["notes"])


def test_operations_without_a_rule_keep_their_channels() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b, self.c = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.b(self.norm(self.a(x))))
            return self.c(torch.fft.fft(x).real)

    model = randomize(Odd())
    unread(model.b, (0, 1))
    unread(model.c, (2,))
    result = compact_checked(model, torch.randn(3, 4))
    assert widths(result.model) == widths(model)
    notes = "\n".join(result.plan["notes"])
    assert "norm (LayerNorm)" in notes
    assert "fft" in notes


def test_outputs_of_the_model_stay() -> None:
    model = randomize(nn.Sequential(nn.Linear(4, 6), nn.ReLU()))
    silent(model[0], (2,))
    assert widths(compact_checked(model, torch.randn(3, 4)).model)["0"] == (4, 6)


def test_parameters_used_outside_of_layers() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 2, 1)
            self.scale = nn.Parameter(torch.ones(6, 1, 1))
            self.position = nn.Parameter(torch.zeros(1, 6, 4, 4))
            self.matrix = nn.Parameter(torch.zeros(2, 5))
            self.last = nn.Parameter(torch.zeros(5, 3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(torch.relu(self.a(x)) * self.scale).mean((2, 3))
            return torch.relu(x @ self.matrix) @ self.last

    model = randomize(Scaled())
    unread(model.b, (1, 4))
    with torch.no_grad():
        model.last[2] = 0
    small = compact_checked(model, torch.randn(2, 2, 6, 6)).model
    assert small.scale.shape == (4, 1, 1)
    assert small.matrix.shape == (2, 4)
    assert small.last.shape == (4, 3)
    assert small.position.shape == model.position.shape


def test_whole_parameter_that_meets_channels_keeps_them() -> None:
    class Positioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
            self.position = nn.Parameter(torch.zeros(1, 5, 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) + self.position)

    model = randomize(Positioned())
    unread(model.b, (0,))
    assert widths(compact_checked(model, torch.randn(2, 5, 4)).model)["a"] == (4, 6)


def test_parametrized_weights_are_kept() -> None:
    model = randomize(Mlp())
    nn.utils.parametrizations.weight_norm(model.b)
    with torch.no_grad():
        model.c.weight[:, 2] = 0
        model.b.parametrizations.weight.original1[:, 1] = 0
    result = compact_checked(model, torch.randn(2, 6))
    assert widths(result.model) == widths(model)
    assert any("parametrization" in note for note in result.plan["notes"])


def test_data_dependent_python_runs() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            if x.sum() > 0:
                x = torch.relu(self.b(x))
            return self.c(x)

    model = randomize(Branch())
    unread(model.c, (1,))
    unread(model.b, (1,))
    assert widths(compact_checked(model, torch.ones(2, 4)).model)["a"] == (4, 6)  # the branch reads channel 1


@pytest.mark.parametrize(
    "wrap, message",
    [
        (lambda net: torch.jit.script(net), "scripted"),
        (lambda net: nn.DataParallel(net), r"DataParallel.*\.module"),
        (lambda net: nn.Sequential(torch.compile(net)), r"OptimizedModule.*\._orig_mod"),
    ],
    ids=["script", "data_parallel", "compile"],
)
def test_wrapped_models_are_refused(wrap: Any, message: str) -> None:
    model = wrap(nn.Sequential(nn.Linear(6, 4)))
    with pytest.raises(UnsupportedModelError, match=message):
        compact(model, torch.randn(2, 6))


def test_failing_forward_names_the_module() -> None:
    model = randomize(LeNet())
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match=r"fc1 \(Linear\).*shapes cannot be multiplied"):
        compact(model, torch.randn(2, 1, 30, 30))
    assert_unchanged(model, before)


def test_tolerance_is_enforced() -> None:
    model = randomize(ResNet())
    CASES["resnet"].plant(model)
    before = snapshot(model)
    with pytest.raises(OutputMismatchError, match="output 0: expected a difference of at most 0"):
        compact(model, CASES["resnet"].example(), tolerance=0)
    assert_unchanged(model, before)


def test_random_operations_leave_the_generator_alone() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.a(x), 0.5)

    model, example = randomize(Noisy()), torch.randn(2, 4)
    state = torch.get_rng_state()
    assert compact(model, example).max_abs_diff == 0  # every run is seeded alike
    assert torch.equal(torch.get_rng_state(), state)


def test_compact_model_that_cannot_run_is_an_error() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            if x.shape[1] != 6:
                raise ValueError("six, please")
            return self.b(x)

    model = randomize(Stubborn())
    unread(model.b, (0,))
    before = snapshot(model)
    with pytest.raises(CompactError, match="does not run: ValueError: six, please"):
        compact(model, torch.randn(2, 4))
    assert_unchanged(model, before)


def test_model_that_cannot_be_copied() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.lock = iter([1])  # a generator cannot be copied
    model.lock = (i for i in range(3))
    with pytest.raises(CompactError, match="cannot be copied"):
        compact(model, torch.randn(1, 2))


def test_two_blocks_share_one_module() -> None:
    block = BasicBlock(4, 4, 1)
    model = randomize(nn.Sequential(nn.Conv2d(2, 4, 1), block, block, nn.Conv2d(4, 2, 1)))
    unread(block.conv1, (2,))
    unread(block.conv2, (1, 3))
    unread(model[3], (2,))
    small = compact_checked(model, torch.randn(2, 2, 5, 5)).model
    assert widths(small)["1.conv2"] == (2, 3)
    assert small[1] is small[2]


def test_compact_twice_changes_nothing_more() -> None:
    model = randomize(ResNet())
    CASES["resnet"].plant(model)
    once = compact(model, CASES["resnet"].example())
    again = compact(once.model, CASES["resnet"].example())
    assert again.plan["tensors"] == {}


def test_report_is_readable() -> None:
    model = randomize(LeNet())
    CASES["lenet"].plant(model)
    report = compact(model, CASES["lenet"].example()).report
    text = str(report)
    assert "32 → 20" in text
    assert "MACs" in text
    assert report.macs[0] == 2 * (6 * 9 * 144 + 8 * 54 * 16 + 32 * 10 + 10 * 4)
    assert report.to_plain()["layers"][0]["name"] == "conv1"


def test_auxiliary_head_of_train_mode_keeps_its_channels() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 5, 1), nn.Linear(5, 2)
            self.norm = nn.BatchNorm2d(6)
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            x = torch.relu(self.norm(self.a(x)))
            out = self.c(torch.relu(self.b(x)).mean((2, 3)))
            return (out, self.head(x.mean((2, 3)))) if self.training else out

    model = randomize(Auxiliary()).train()
    unread(model.b, (0, 1, 2))
    unread(model.head, (1, 2, 3))
    unread(model.c, (4,))
    result = compact_checked(model, torch.randn(4, 2, 6, 6))
    assert widths(result.model) == {"a": (2, 4), "b": (4, 4), "c": (4, 2), "head": (4, 2)}
    x = torch.randn(4, 2, 6, 6)
    for new, old in zip(result.model(x), model(x), strict=True):
        torch.testing.assert_close(new, old)


def test_unused_layers_are_left_alone() -> None:
    model = randomize(Mlp())
    model.unused = nn.Linear(3, 4)
    unread(model.b, (0,))
    assert widths(compact_checked(model, torch.randn(2, 6)).model)["unused"] == (3, 4)


def test_buffers_that_the_forward_pass_writes() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("mean", torch.zeros(6))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            x = self.a(x)
            self.mean.mul_(0.9).add_(x.mean(0))
            return self.b(torch.relu(x - self.mean))

    model = randomize(Counting())
    unread(model.b, (1, 3))
    silent(model.a, (0,), bias=0.5)
    result = compact_checked(model, torch.randn(3, 4))
    assert widths(result.model)["a"] == (4, 6)  # the written buffer is kept whole
    assert float(result.model.calls) == 0


def test_values_read_by_python_make_no_constants() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) * float(x.mean()))

    model = randomize(Scaled())
    silent(model.a, (0,), bias=0.5)
    unread(model.b, (3,))
    result = compact_checked(model, torch.randn(3, 4))
    assert widths(result.model)["a"] == (4, 5)
    assert any("path of the example" in note for note in result.plan["notes"])


def test_lazy_modules_are_named() -> None:
    with pytest.raises(UnsupportedModelError, match=r"1 \(LazyLinear\): weight has no shape yet"):
        compact(nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2)), torch.randn(2, 3))


def test_result_of_an_unseen_function_keeps_what_came_before() -> None:
    @torch.jit.script
    def hidden(x: Tensor) -> Tensor:
        return x.flip(1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(hidden(self.a(x)))))

    model = randomize(Net())
    unread(model.b, (0,))
    unread(model.c, (0,))
    result = compact_checked(model, torch.randn(3, 4))
    assert widths(result.model) == {"a": (4, 6), "b": (6, 4), "c": (4, 2)}
    assert any("unknown origin" in note for note in result.plan["notes"])


def test_custom_autograd_function() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(Double.apply(self.a(x)))

    model = randomize(Net())
    unread(model.b, (0,))
    compact_checked(model, torch.randn(3, 4))


def test_attention_block_keeps_its_model_dimension() -> None:
    model = randomize(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    unread(model.linear2, range(0, 16, 3))
    result = compact_checked(model, torch.randn(2, 5, 8))
    assert widths(result.model)["linear1"] == (8, 10)


def test_recurrent_layers_are_kept() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.rnn, self.b, self.c = nn.Linear(4, 6), nn.LSTM(6, 5), nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(self.rnn(self.a(x))[0])))

    model = randomize(Net())
    unread(model.b, (0,))
    unread(model.c, (1,))
    result = compact_checked(model, torch.randn(3, 2, 4))
    assert widths(result.model) == {"a": (4, 6), "b": (5, 3), "c": (3, 2)}


def test_hook_made_weight_is_named() -> None:
    model = randomize(Mlp())
    prune.random_unstructured(model.b, "weight", amount=0.5)
    with pytest.raises(CompactError, match=r"b \(Linear\): weight, a result of other tensors.* cannot be copied"):
        compact(model, torch.randn(2, 6))


def test_inputs_are_not_touched_and_must_be_leaves() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x.mul_(2))

    x = torch.ones(2, 4)
    compact(randomize(InPlace()), x)
    assert torch.equal(x, torch.ones(2, 4))
    with pytest.raises(CompactError, match="example_inputs cannot be copied"):
        compact(randomize(InPlace()), x.requires_grad_() * 2)


def test_model_without_tensor_outputs() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "nothing"

    with pytest.raises(UnsupportedModelError, match="output holds no tensor"):
        compact(Silent(), torch.ones(1))


def test_report_survives_a_failing_counter(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no counting today")

    monkeypatch.setattr("sparse_accel.report.FlopCounterMode.__enter__", fail)
    report = compact(randomize(Mlp()), torch.randn(2, 6)).report
    assert report.macs == (0, 0)
    assert "no counting today" in caplog.text
