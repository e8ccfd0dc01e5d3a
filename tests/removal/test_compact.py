"""Compaction is exact on every topology, and leaves the given model alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compact_cases import CASES
from compact_checks import assert_same_outputs, compact_checked, widths
from compact_models import (
    BasicBlock,
    LeNet,
    Mlp,
    ResNet,
    Vgg,
    randomize,
    unread,
)
from torch import nn

from sparse_accel.removal.compact import compact


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


def test_report_survives_a_failing_counter(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no counting today")

    monkeypatch.setattr("sparse_accel.report.costs.FlopCounterMode.__enter__", fail)
    report = compact(randomize(Mlp()), torch.randn(2, 6)).report
    assert report.macs == (0, 0)
    assert "no counting today" in caplog.text
