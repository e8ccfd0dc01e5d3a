"""Sizes that hardware likes: multiples, rounded up by keeping the best of what would go."""

from __future__ import annotations

import pytest
import structured_models as nets
import torch
from expert_models import Mixture
from norm_models import convnext, pictures
from torch import Tensor, nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.prune import ISpaSP

VECTORS = torch.randn(48, 6, generator=torch.Generator().manual_seed(2))


def mlp(hidden: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 3)).eval()


@pytest.mark.parametrize(
    "hidden, keep, units", [(40, 0.5, 24), (40, 0.4, 16), (40, 0.95, 40), (6, 0.5, 6), (30, 0.9, 30)]
)
def test_shares_are_rounded_up_and_never_above_the_dense_size(hidden, keep, units):
    result = ISpaSP(mlp(hidden), VECTORS[:2], keep=keep, round_to=8).run(VECTORS)
    assert result.model[0].out_features == units
    assert result.report.widths == [] or result.report.widths[0].units == (hidden, units)


def test_the_best_of_what_would_go_stays():
    """As many units as asked for by number: backward elimination only stops earlier."""
    rounded = ISpaSP(mlp(40), VECTORS[:2], keep=0.5, round_to=8).run(VECTORS)
    asked = ISpaSP(mlp(40), VECTORS[:2], keep_per_layer={"*": 24}).run(VECTORS)
    fewer = ISpaSP(mlp(40), VECTORS[:2], keep=0.5).run(VECTORS)
    assert rounded.kept == asked.kept
    assert set(fewer.kept["0"]) < set(rounded.kept["0"])


def test_numbers_are_taken_at_their_word():
    assert ISpaSP(mlp(40), VECTORS[:2], keep_per_layer={"*": 21}, round_to=8).run(VECTORS).model[0].out_features == 21


class Flat(nn.Module):
    """Each channel is four columns of what reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 24, 3, 1, 1), nn.Linear(24 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.conv(x)), 2).flatten(1))


def test_every_layer_that_makes_or_reads_the_units_has_a_multiple():
    torch.manual_seed(0)
    small = ISpaSP(Flat().eval(), nets.images(1), keep=0.4, round_to=8).run(nets.images()).model
    assert (small.conv.out_channels, small.fc.in_features) == (16, 64)


def test_budgets_end_at_multiples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 36), nn.ReLU(), nn.Linear(36, 3)).eval()
    result = ISpaSP(model, VECTORS[:2], budget={"params": 0.5}, round_to=8).run(VECTORS)
    sizes = result.model[0].out_features, result.model[2].out_features
    assert sizes[0] % 8 == 0
    assert sizes[1] % 8 == 0 or sizes[1] == 36
    params = [sum(p.numel() for p in net.parameters()) for net in (result.model, model)]
    assert params[0] <= 0.5 * params[1]


@pytest.mark.parametrize("round_to", [0, -8, 2.5, True, "8"])
def test_a_multiple_is_a_whole_number(round_to):
    for call in (
        lambda: ISpaSP(mlp(8), VECTORS[:2], round_to=round_to),
        lambda: sa.compact(mlp(8), VECTORS[:2], round_to=round_to),
    ):
        with pytest.raises(ValueError, match="round_to: expected a whole number of at least 1, got"):
            call()


def dead(model: nn.Module, units: list[int]) -> nn.Module:
    with torch.no_grad():
        model[2].weight[:, units] = 0
    return model


def test_compact_keeps_the_largest_of_the_dead():
    model = dead(mlp(32), list(range(4, 30)))
    with torch.no_grad():
        model[0].weight[[11, 28]] *= 100
    assert sa.compact(model, VECTORS[:2]).model[0].out_features == 6
    result = sa.compact(model, VECTORS[:4], round_to=8)
    kept = result.plan["tensors"]["0.weight"]["keep"]["0"]
    assert kept == [0, 1, 2, 3, 11, 28, 30, 31]
    torch.testing.assert_close(result.model(VECTORS), model(VECTORS))


def test_compact_keeps_all_where_a_multiple_would_be_more():
    model = dead(mlp(12), [1, 5])
    assert sa.compact(model, VECTORS[:2], round_to=16).model[0].out_features == 12
    assert sa.compact(model, VECTORS[:2], round_to=4).model[0].out_features == 12
    assert sa.compact(model, VECTORS[:2], round_to=5).model[0].out_features == 10


def test_compact_of_tied_and_grouped_layers():
    torch.manual_seed(0)
    model = nets.resnet(16)
    with torch.no_grad():
        for block in (*model.layer1, model.layer2):
            block.conv2.weight[:, :11] = 0
    result = sa.compact(model, nets.images(2), round_to=8)
    blocks = (*result.model.layer1, result.model.layer2)
    assert [block.conv1.out_channels for block in blocks] == [8, 8, 24]  # of 5, 5 and 21
    torch.testing.assert_close(result.model(nets.images(4)), model(nets.images(4)), rtol=1e-5, atol=1e-5)


def experts(inner: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Stacked experts, whose numbers of neurons are multiples of 16 bytes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), Mixture("linear", inner=inner)).eval().to(dtype)


@pytest.mark.parametrize(
    "inner, keep, round_to, units",
    [
        (24, 0.6, 1, 12),  # rounded down to 4, of 14.4
        (24, 0.6, 2, 16),  # up to 4
        (24, 0.6, 8, 16),
        (24, 0.6, 6, 24),  # up to 12
        (24, 0.05, 1, 4),
        (24, 0.05, 8, 8),
        (24, 0.9, 16, 24),
        (22, 0.5, 1, 11),  # whose own rows are no multiple
        (22, 0.5, 4, 12),
    ],
)
def test_neurons_of_stacked_experts(inner, keep, round_to, units):
    result = ISpaSP(experts(inner), VECTORS[:2], keep=keep, only=["1"], round_to=round_to).run(VECTORS)
    assert result.report.widths == [] or result.report.widths[0].units == (inner, units)
    assert result.model[1].up.shape[1] == result.model[1].down.shape[2] == units


def test_budgets_of_stacked_experts_end_at_multiples():
    for round_to, multiple in ((1, 4), (6, 12)):
        model = experts(48)
        result = ISpaSP(model, VECTORS[:2], only=["1"], budget={"params": 0.7}, round_to=round_to).run(VECTORS)
        assert result.model[1].up.shape[1] % multiple == 0
        assert result.model[1].up.shape[1] < 48


def test_compact_of_stacked_experts_keeps_the_largest_of_the_silent():
    model = experts(24)
    with torch.no_grad():
        model[1].down[:, :, 5:] = 0
        model[1].up[1, [9, 20, 23]] *= 10
    assert sa.compact(model, VECTORS[:4]).model[1].up.shape[1] == 8
    for round_to, units in ((2, 8), (6, 12), (16, 16), (32, 24)):
        result = sa.compact(model, VECTORS[:4], round_to=round_to)
        assert result.model[1].up.shape[1] == units
        if units < 24:
            kept = result.plan["tensors"]["1.up"]["keep"]["1"][1]
            assert {0, 1, 2, 3, 4, 9, 20, 23} <= set(kept)
            (note,) = [note for note in result.plan["notes"] if "add nothing" in note]
            assert f"in multiples of {units if units > 8 else 4}, " in note
        torch.testing.assert_close(result.model(VECTORS), model(VECTORS))


def test_compact_of_response_norms():
    """Zeros that stay for the number's sake count in the mean over what is left."""
    model, x = convnext(blocks=1), pictures(8)
    with torch.no_grad():
        model[1].expand.weight[[1, 2, 5, 7, 8]] = 0
        model[1].expand.bias[[1, 2, 5, 7, 8]] = 0
    assert sa.compact(model, x[:2]).model[1].norm.weight.numel() == 11
    result = sa.compact(model, x[:2], round_to=4)
    assert result.model[1].norm.weight.numel() == 12
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-4, atol=1e-4)
