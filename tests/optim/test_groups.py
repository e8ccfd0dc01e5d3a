"""Group layouts against brute force, and which parameters of a model get which groups."""

from __future__ import annotations

import warnings
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sparse_accel as sa
from sparse_accel.groups import (
    Grouping,
    GroupLayout,
    group_layout,
    is_dense,
    layout_of,
    module_grouping,
    named_groupings,
)
from sparse_accel.reference import grouped_view

BY = ["input", "output", "kernel", "element"]


def group_numbers(shape: tuple[int, ...], grouping: Grouping) -> Tensor:
    """The group of every element of a weight, from what the groupings mean, one element at a time."""
    numbers = torch.zeros(shape, dtype=torch.int64)
    for index in product(*(range(size) for size in shape)):
        first, second = index[:2]
        per_group = shape[0] // grouping.conv_groups
        block = first // per_group
        if grouping.by == "kernel":
            number = first * shape[1] + second
        elif (grouping.by == "output") != grouping.transposed:
            number = first  # the first dimension counts its channels over all convolution groups
        else:
            number = block * shape[1] + second  # the second counts them within one
        numbers[index] = number
    return numbers


def elements_of(tensor: Tensor, layout: GroupLayout) -> Tensor:
    """The number of the group in each place of the tensor's memory, [blocks, outer, groups, inner]."""
    outer, groups, inner, blocks = layout
    numbers = torch.arange(blocks * groups).reshape(blocks, 1, groups, 1)
    return numbers.expand(blocks, outer, groups, inner)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_layouts_against_brute_force(data: st.DataObject) -> None:
    dims = data.draw(st.integers(2, 5))
    conv_groups = data.draw(st.integers(1, 3))
    shape = [conv_groups * data.draw(st.integers(1, 3))]
    shape += data.draw(st.lists(st.integers(1, 3), min_size=dims - 1, max_size=dims - 1))
    grouping = Grouping(data.draw(st.sampled_from(BY[:3])), data.draw(st.booleans()), conv_groups)
    order = data.draw(st.permutations(range(dims)))
    tensor = group_numbers(tuple(shape), grouping)
    tensor = tensor.permute(order).contiguous().permute([order.index(i) for i in range(dims)])
    layout, in_place = layout_of(tensor, grouping)
    if not in_place:
        tensor = tensor.contiguous()
        assert layout_of(tensor, grouping) == (layout, True)
    assert layout == group_layout(tensor, grouping)
    assert layout.numel == tensor.numel()
    assert layout.num_groups == tensor.max() + 1
    assert torch.equal(grouped_view(tensor, layout), elements_of(tensor, layout))


@pytest.mark.parametrize(
    ("shape", "by", "expected"),
    [
        ((5, 7), "output", (1, 5, 7)),
        ((5, 7), "input", (5, 7, 1)),
        ((5, 7, 3, 3), "output", (1, 5, 63)),
        ((5, 7, 3, 3), "input", (5, 7, 9)),
        ((5, 7, 3, 3), "kernel", (1, 35, 9)),
        ((5, 7, 3, 3), "element", (1, 315, 1)),
        ((5, 7, 3), "input", (5, 7, 3)),
        ((5, 7, 2, 2, 2), "input", (5, 7, 8)),
        ((8,), "element", (1, 8, 1)),
        ((), "element", (1, 1, 1)),
    ],
)
def test_contiguous_layouts(shape: tuple[int, ...], by: str, expected: tuple[int, ...]) -> None:
    assert group_layout(torch.zeros(shape), by) == GroupLayout(*expected)


def test_channels_last_layouts() -> None:
    weight = torch.zeros(5, 7, 3, 3).to(memory_format=torch.channels_last)
    assert group_layout(weight, "input") == GroupLayout(45, 7, 1)
    assert group_layout(weight, "output") == GroupLayout(1, 5, 63)
    assert group_layout(weight, "kernel") == GroupLayout(9, 7, 1, 5)
    assert all(layout_of(weight, by)[1] for by in BY)


def test_grouped_convolution_layouts() -> None:
    weight = torch.zeros(6, 4, 3, 3)  # 12 input channels in 3 groups
    assert group_layout(weight, Grouping("input", conv_groups=3)) == GroupLayout(2, 4, 9, 3)
    assert group_layout(weight, Grouping("output", conv_groups=3)) == GroupLayout(1, 6, 36)
    depthwise = torch.zeros(6, 1, 3, 3)
    for by in ("input", "output", "kernel"):
        assert group_layout(depthwise, Grouping(by, conv_groups=6)).num_groups == 6


def test_transposed_convolution_layouts() -> None:
    weight = torch.zeros(6, 4, 3, 3)  # [in, out / groups, kernel]
    assert group_layout(weight, Grouping("input", transposed=True)) == GroupLayout(1, 6, 36)
    assert group_layout(weight, Grouping("output", transposed=True)) == GroupLayout(6, 4, 9)
    assert group_layout(weight, Grouping("output", transposed=True, conv_groups=2)) == GroupLayout(3, 4, 9, 2)


def test_empty_tensors() -> None:
    for shape in ((0, 3), (3, 0), (0, 3, 2, 2), (3, 4, 0)):
        for by in BY:
            layout, in_place = layout_of(torch.zeros(shape), by)
            assert in_place
            assert layout.numel == 0
    assert group_layout(torch.zeros(0, 3), "input").num_groups == 3


def test_density() -> None:
    base = torch.zeros(4, 6, 8)
    assert is_dense(base)
    assert is_dense(base.permute(2, 0, 1))
    assert is_dense(base[1])
    assert is_dense(base[:1])
    assert is_dense(torch.zeros(()))
    assert is_dense(torch.zeros(0, 3))
    assert not is_dense(base[:, ::2])
    assert not is_dense(base[..., 0])
    assert not is_dense(torch.zeros(1).expand(4))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"by='input': expected a weight of two or more dimensions, got \(3,\)"):
        group_layout(torch.zeros(3), "input")
    with pytest.raises(ValueError, match="by: expected one of 'input'"):
        group_layout(torch.zeros(3, 3), "channel")
    with pytest.raises(ValueError, match=r"conv_groups: expected a divisor of 4 \(shape \(4, 3\)\), got 3"):
        group_layout(torch.zeros(4, 3), Grouping("input", conv_groups=3))
    with pytest.raises(ValueError, match="conv_groups: expected a positive number, got 0"):
        Grouping("input", conv_groups=0).check()


@pytest.mark.parametrize(
    ("module", "by", "expected"),
    [
        (nn.Linear(3, 4), "input", Grouping("input")),
        (nn.Bilinear(3, 4, 2), "input", Grouping("input")),
        (nn.Conv1d(4, 6, 3, groups=2), "output", Grouping("output", conv_groups=2)),
        (nn.ConvTranspose3d(4, 6, 3), "input", Grouping("input", transposed=True)),
        (nn.Embedding(3, 4), "input", None),
        (nn.LayerNorm((3, 4)), "input", None),
        (nn.BatchNorm2d(3), "element", None),
    ],
)
def test_module_groupings(module: nn.Module, by: str, expected: Grouping | None) -> None:
    assert module_grouping(module, by) == expected


def test_input_groups_are_input_channels() -> None:
    """A zero group by input means an input channel that changes nothing, in every kind of layer."""
    layers: list[tuple[Any, Tensor]] = [
        (nn.Linear(6, 4), torch.randn(2, 6)),
        (nn.Conv2d(6, 4, 3), torch.randn(2, 6, 5, 5)),
        (nn.Conv2d(6, 4, 3, groups=2), torch.randn(2, 6, 5, 5)),
        (nn.Conv2d(6, 12, 3, groups=6), torch.randn(2, 6, 5, 5)),
        (nn.ConvTranspose2d(6, 4, 3), torch.randn(2, 6, 5, 5)),
        (nn.ConvTranspose2d(6, 4, 3, groups=2), torch.randn(2, 6, 5, 5)),
        (nn.Conv1d(6, 4, 3), torch.randn(2, 6, 5)),
        (nn.Conv3d(6, 4, 2), torch.randn(2, 6, 3, 3, 3)),
    ]
    for layer, inputs in layers:
        grouping = module_grouping(layer, "input")
        layout = group_layout(layer.weight, grouping)
        for channel in range(6):
            with torch.no_grad():
                layer.reset_parameters()
                view = grouped_view(layer.weight, layout)
                view[channel // layout.groups, :, channel % layout.groups] = 0
                changed = inputs.clone()
                changed[:, channel] += 1
                assert torch.equal(layer(inputs), layer(changed)), (layer, channel)
                changed[:, (channel + 1) % 6] += 1
                assert not torch.equal(layer(inputs), layer(changed))


def test_output_groups_are_output_channels() -> None:
    layers: list[tuple[Any, Tensor]] = [
        (nn.Linear(6, 4, bias=False), torch.randn(2, 6)),
        (nn.Conv2d(6, 4, 3, groups=2, bias=False), torch.randn(2, 6, 5, 5)),
        (nn.ConvTranspose2d(6, 4, 3, bias=False), torch.randn(2, 6, 5, 5)),
        (nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False), torch.randn(2, 6, 5, 5)),
    ]
    for layer, inputs in layers:
        layout = group_layout(layer.weight, module_grouping(layer, "output"))
        assert layout.num_groups == 4
        for channel in range(4):
            with torch.no_grad():
                layer.reset_parameters()
                view = grouped_view(layer.weight, layout)
                view[channel // layout.groups, :, channel % layout.groups] = 0
                zero = layer(inputs).transpose(0, 1).flatten(1).eq(0).all(1)
                assert zero.nonzero().flatten().tolist() == [channel], layer


# -------------------------------------------------------------------------------------------- param_groups


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(()))


def names(group: dict[str, Any]) -> set[str]:
    return {name for name, _ in group["params"]}


def test_param_groups() -> None:
    penalty = sa.GroupLasso(0.1)
    groups = sa.param_groups(Net(), penalty, lr=0.3)
    assert [(names(g), g["penalty"], g.get("transposed"), g.get("conv_groups")) for g in groups] == [
        ({"conv.weight", "head.weight"}, penalty, False, 1),
        ({"depthwise.weight"}, penalty, False, 8),
        ({"up.weight"}, penalty, True, 1),
        (
            {"conv.bias", "norm.weight", "norm.bias", "up.bias", "embedding.weight", "head.bias", "scale"},
            None,
            None,
            None,
        ),
    ]
    assert all(group["lr"] == 0.3 for group in groups)


def test_param_groups_without_penalty() -> None:
    (group,) = sa.param_groups(Net(), None)
    assert len(group["params"]) == len(list(Net().parameters()))
    assert group["penalty"] is None


def test_param_groups_of_every_optimizer() -> None:
    model = Net()
    for make in (sa.RMDA, sa.ProxSGD):
        opt = make(sa.param_groups(model, sa.GroupLasso(0.1)), lr=0.1)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        opt.step()
        assert len(opt.state) == len(list(model.parameters()))


def test_frozen_parameters_are_kept() -> None:
    model = Net()
    model.conv.requires_grad_(False)
    assert "conv.weight" in names(sa.param_groups(model, sa.GroupLasso(0.1))[0])


def test_tied_parameters_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    found = [name for name, _, _ in named_groupings(model, "input")]
    assert found == ["0.weight", "0.bias", "1.bias"]


def test_parameters_tied_in_different_roles_are_not_regularized() -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
    model[1].weight = model[0].weight
    with pytest.warns(UserWarning, match=r"0.weight and 1.weight are one parameter.*left unregularized"):
        groups = sa.param_groups(model, sa.GroupLasso(0.1))
    assert [group["penalty"] for group in groups] == [None]
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sa.param_groups(model, sa.GroupLasso(0.1))


def test_conv1d_of_transformers_is_read_as_it_is() -> None:
    """GPT-2's layers hold ``[in, out]``: a zero input is a zero row, and compact removes it."""
    transformers = pytest.importorskip("transformers")
    layer = transformers.pytorch_utils.Conv1D(6, 4)  # 4 inputs, 6 outputs
    assert module_grouping(layer, "input") == Grouping("input", transposed=True)
    layer.weight.data[1] = 0
    report = sa.sparsity(layer, by="input")
    assert (report.groups, report.zero_groups) == (4, 1)
    assert sa.sparsity(layer, by="output").groups == 6
    opt = sa.RMDA(sa.param_groups(layer, sa.GroupLasso(10.0, by="input")), lr=1.0, momentum=1.0)
    layer.weight.grad = torch.zeros_like(layer.weight)
    layer.weight.grad[2] = -1e3 * torch.ones(6)
    opt.step()
    assert layer.weight.ne(0).any(1).tolist() == [False, False, True, False]


def test_a_users_conv1d_is_none_of_transformers() -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6, 4))

    assert module_grouping(Conv1D(), "input") == Grouping("input")


def test_gpt2_neurons_that_training_made_zero_are_removed() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2, n_inner=12, use_cache=False
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    opt = sa.RMDA(sa.param_groups(model, sa.GroupLasso(1.0, by="input")), lr=1.0, momentum=1.0)
    tokens = torch.arange(10)[None]
    model(tokens, labels=tokens).loss.backward()
    mlp = model.transformer.h[0].mlp
    keep = torch.arange(12) < 5
    for name, weight in model.named_parameters():
        weight.grad.zero_()
        if not name.endswith("mlp.c_proj.weight"):
            weight.grad.copy_(-1e3 * weight.sign())
        else:
            weight.grad[keep] = -1e3 * weight[keep].sign()
    opt.step()
    assert sa.sparsity(mlp.c_proj, by="input").zero_groups == 7
    with torch.no_grad():
        small = sa.compact(model, tokens, tolerance=1e-3).model
    assert small.transformer.h[0].mlp.c_proj.weight.shape == (5, 8)
