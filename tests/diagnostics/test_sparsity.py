"""The sparsity report counts groups as the penalties form them."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sparse_accel.diagnostics.sparsity import sparsity
from sparse_accel.groups import group_layout, named_groupings


def numbers(model: nn.Module, by: str) -> tuple[int, int]:
    report = sparsity(model, by=by)
    return report.groups, report.zero_groups


def test_linear_by_everything() -> None:
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.weight[:, 1] = 0
        layer.weight[2] = 0
    assert numbers(layer, "input") == (4, 1)
    assert numbers(layer, "output") == (3, 1)
    assert numbers(layer, "kernel") == (12, 6)
    assert numbers(layer, "element") == (12, 6)
    report = sparsity(layer)
    assert report.group_sparsity == 0.25
    assert report.weighted_group_sparsity == 0.25
    assert report.sparsity == 0.5


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_against_a_loop(dims: int, transposed: bool, groups: int) -> None:
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    layer = kind(4, 8, 2, groups=groups)
    generator = torch.Generator().manual_seed(dims)
    with torch.no_grad():
        layer.weight *= torch.randint(0, 2, layer.weight.shape[:2], generator=generator)[(...,) + (None,) * dims]
        layer.weight[1] = 0
        layer.weight[:, 0] *= (torch.arange(len(layer.weight)) % 2).reshape(-1, *[1] * dims)
    weight = layer.weight.detach()
    first = weight.shape[0] // groups
    by_input: set[int] = set()
    by_output: set[int] = set()
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            far = (row // first) * weight.shape[1] + column
            inputs, outputs = (row, far) if transposed else (far, row)
            if weight[row, column].abs().sum() > 0:
                by_input.add(inputs)
                by_output.add(outputs)
    assert numbers(layer, "input") == (4, 4 - len(by_input))
    assert numbers(layer, "output") == (8, 8 - len(by_output))
    report = sparsity(layer, by="kernel")
    assert report.groups == weight.shape[0] * weight.shape[1]
    assert report.zero_groups == int((weight.flatten(2) == 0).all(2).sum())


@pytest.mark.parametrize("by", ["input", "output", "kernel", "element"])
def test_numbers_of_groups_are_those_of_the_layout(by: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(6, 4, 2, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Linear(3, 2),
    )
    report = sparsity(model, by=by)
    layouts = [group_layout(p, g) for _, p, g in named_groupings(model, by) if g is not None]
    assert [row.groups for row in report.layers] == [layout.num_groups for layout in layouts]
    assert report.zero_groups == 0


def test_sizes_are_weighed() -> None:
    model = nn.Sequential(nn.Linear(2, 10), nn.Linear(10, 2))
    with torch.no_grad():
        model[0].weight[:, 0] = 0
    report = sparsity(model)
    assert report.group_sparsity == 1 / 12
    assert report.weighted_group_sparsity == 10 / 40


def test_norms_biases_and_embeddings_do_not_count_and_tied_weights_once() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[3].weight = model[2].weight
    report = sparsity(model)
    assert [row.name for row in report.layers] == ["2.weight"]
    assert report.groups == 4


def test_signed_zeros_nans_and_strides() -> None:
    layer = nn.Conv2d(4, 3, 3).to(memory_format=torch.channels_last)
    with torch.no_grad():
        layer.weight[:, 0] = -0.0
        layer.weight[:, 1] = float("nan")
    assert numbers(layer, "input") == (4, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_and_tiny_values(dtype: torch.dtype) -> None:
    layer = nn.Linear(3, 2).to(dtype)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 1] = torch.finfo(dtype).tiny  # its square underflows
    assert numbers(layer, "input") == (3, 2)


def test_empty_and_parameterless_models() -> None:
    report = sparsity(nn.Sequential(nn.ReLU(), nn.Linear(0, 3)))
    assert report.zero_groups == 0
    assert report.sparsity == report.group_sparsity == report.weighted_group_sparsity == 0
    assert "total" in str(report)


def test_unknown_grouping() -> None:
    with pytest.raises(ValueError, match="by: expected one of 'input'"):
        sparsity(nn.Linear(2, 2), by="row")


def test_table_and_plain() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 2))
    with torch.no_grad():
        model[1].weight[:, :6] = 0
    report = sparsity(model)
    lines = str(report).splitlines()
    assert lines[0] == "groups by input"
    assert [line.split()[0] for line in lines if not line.startswith("-")] == [
        "groups",
        "weight",
        "0.weight",
        "1.weight",
        "total",
    ]
    assert "75.0 %" in str(report)
    assert json.loads(json.dumps(report.to_plain()))["zero_groups"] == 6
