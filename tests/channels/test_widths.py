"""Widths that can be cut, and their removal: on every topology of the compaction tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compact_cases import CASES
from compact_checks import assert_same_outputs, assert_unchanged, snapshot
from compact_models import Mlp, ResNet, ResNeXt, Sequence, randomize
from torch import Tensor, nn

import sparse_accel as sa
from sparse_accel.prune import Width, Widths, find_widths, remove_units
from sparse_accel.removal.compact import CompactError, OutputMismatchError, UnsupportedModelError


def some_units(width: Width) -> Tensor:
    """Every second unit; of each group where groups stay equally wide."""
    if width.balance is not None:
        return width.balance[:, 1::2].reshape(-1)
    return torch.arange(1, width.units, 2)


@pytest.mark.parametrize("name", CASES)
def test_half_of_every_width_goes(name: str, tmp_path: Path) -> None:
    model, example = randomize(CASES[name].build()), CASES[name].example()
    before = snapshot(model)
    widths = find_widths(model, example)
    kept = {width.name: some_units(width) for width in widths}
    result = remove_units(model, example, kept)
    assert_unchanged(model, before)
    assert kept
    assert sum(p.numel() for p in result.model.parameters()) < sum(p.numel() for p in model.parameters())
    for width in widths:
        for consumer in width.consumers:
            layer = dict(model.named_parameters())[consumer.weight]
            with torch.no_grad():
                gone = consumer.channels[[unit for unit in range(width.units) if unit not in kept[width.name]]]
                blocks = layer.shape[0] // consumer.groups if not consumer.transposed else 0
                for channel in gone.reshape(-1).tolist():
                    if consumer.transposed:
                        layer[channel] = 0
                    else:
                        group, column = divmod(channel, layer.shape[1])
                        layer[group * blocks : (group + 1) * blocks, column] = 0
    assert_same_outputs(model, result.model, example)  # the model is now the dense one without the units
    sa.save(result, tmp_path)
    assert_same_outputs(result.model, sa.load(tmp_path, model), example)


def _names(widths: Widths) -> dict[str, tuple[int, int]]:
    return {width.name: (width.units, width.unit_size) for width in widths}


def test_widths_of_a_residual_net() -> None:
    widths = find_widths(randomize(ResNet()), torch.randn(1, 3, 8, 8))
    assert [width.name for width in widths if not width.coupled] == ["block1.conv1", "block2.conv1", "block3.conv1"]
    inner = widths.named("block2.conv1")
    assert [(c.module, c.norm, c.channels.tolist()) for c in inner.consumers] == [
        ("block2.conv2", "block2.bn2", [[i] for i in range(12)])
    ]
    assert inner.rows["block2.conv1.weight"].tolist() == [[i] for i in range(12)]
    assert widths.named("stem").producers == ["stem", "block1.conv2"]
    assert widths.refused["fc"] == "fc (Linear): its outputs must stay"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("lenet", {"conv1": (6, 1), "conv2": (8, 4), "fc1": (10, 1)}),
        ("densenet", {"a": (4, 1), "b": (5, 1), "c": (3, 1)}),
        ("depthwise_multiplier", {"expand": (6, 2)}),
        ("gated", {"up": (6, 1)}),
        ("two_halves", {"up": (6, 1)}),
        ("pixel_shuffle", {"a": (3, 1)}),
    ],
)
def test_units_and_their_columns(name: str, expected: dict[str, tuple[int, int]]) -> None:
    assert _names(find_widths(randomize(CASES[name].build()), CASES[name].example())) == expected


def test_consumers_at_offsets() -> None:
    net = randomize(CASES["densenet"].build())
    width = find_widths(net, CASES["densenet"].example()).named("b")
    assert [(c.module, c.channels[0].item()) for c in width.consumers] == [("c", 4), ("fc", 4)]


def test_printed_widths_name_makers_readers_and_what_stays() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    assert str(find_widths(net, torch.zeros(1, 4))).splitlines() == [
        "width  kind      units  made by  read by",
        "0      channels  8      0        2",
        "2      channels  6      2        4",
        "4 (Linear): its outputs must stay",
    ]
    nothing = find_widths(nn.Linear(4, 2), torch.zeros(1, 4))
    assert str(nothing).splitlines() == [
        "width  kind  units  made by  read by",
        "model (Linear): its outputs must stay",
    ]


def test_depthwise_convolutions_are_passed_through() -> None:
    width = find_widths(randomize(CASES["depthwise"].build()), CASES["depthwise"].example())[0]
    assert width.inner == ["depthwise"]
    assert [c.module for c in width.consumers] == ["project"]
    assert not width.coupled


def test_shared_layers_are_marked() -> None:
    widths = find_widths(randomize(CASES["twice"].build()), CASES["twice"].example())
    assert widths[0].coupled
    assert not widths[0].refittable
    assert [c.calls for c in widths[0].consumers] == [2, 1]
    tied = find_widths(randomize(CASES["tied"].build()), CASES["tied"].example())[0]
    assert not tied.refittable
    assert find_widths(randomize(Mlp()), torch.randn(2, 6))[0].refittable


@pytest.mark.parametrize(
    "kept, message",
    [
        ({"nowhere": [0]}, "nowhere: no width of this name: the widths are"),
        ({"c": [0]}, r"c: no width of this name: c \(Linear\): its outputs must stay"),
        ({"a": []}, r"kept\['a'\]: expected a non-empty vector"),
        ({"a": [0.5]}, r"kept\['a'\]: expected a non-empty vector"),
        ({"a": [True, False]}, r"kept\['a'\]: expected a non-empty vector"),
        ({"a": [0, 0]}, r"kept\['a'\]: expected distinct indices below 8"),
        ({"a": [8]}, r"kept\['a'\]: expected distinct indices below 8"),
    ],
)
def test_wrong_units_are_refused(kept: Any, message: str) -> None:
    model = randomize(Mlp())
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        remove_units(model, torch.randn(2, 6), kept)
    assert_unchanged(model, before)


def test_groups_stay_equally_wide() -> None:
    model = randomize(ResNeXt())
    width = find_widths(model, torch.randn(1, 3, 6, 6)).named("reduce")
    assert width.balance is not None
    assert width.balance.shape == (3, 4)
    with pytest.raises(ValueError, match=r"equally many units of each of the 3 groups, got \[2, 1, 1\]"):
        remove_units(model, torch.randn(1, 3, 6, 6), {"reduce": [0, 1, 4, 8]})


class ConcatThenGroups(nn.Module):
    """The groups of a convolution read different layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1)
        self.grouped, self.out = nn.Conv2d(8, 6, 1, groups=2), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.grouped(torch.relu(torch.cat([self.a(x), self.b(x)], 1)))))


def test_groups_of_several_layers_are_refused_by_name() -> None:
    widths = find_widths(randomize(ConcatThenGroups()), torch.randn(1, 2, 3, 3))
    assert [width.name for width in widths] == ["grouped"]
    assert "groups of grouped cannot stay equally wide" in widths.refused["a"]
    with pytest.raises(ValueError, match=r"a: no width of this name: .*groups of grouped"):
        remove_units(randomize(ConcatThenGroups()), torch.randn(1, 2, 3, 3), {"a": [0]})


class Stubborn(nn.Module):
    """Insists on its width, or on its values."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        if self.kind == "width" and y.shape[1] != 6:
            raise ValueError("six, please")
        if self.kind == "fails":
            return self.b(self.a(y))
        if self.kind == "values" and y.shape[1] != 6:
            return self.b(y) + 1
        return self.b(y)


@pytest.mark.parametrize(
    "kind, error, message",
    [
        ("width", CompactError, "does not run: ValueError: six, please"),
        ("values", OutputMismatchError, "output 0: expected a difference of at most"),
        ("fails", UnsupportedModelError, r"a \(Linear\): the forward pass on example_inputs failed"),
    ],
)
def test_models_that_cannot_be_cut_stay_as_they_are(kind: str, error: type[Exception], message: str) -> None:
    model = randomize(Stubborn(kind))
    before = snapshot(model)
    with pytest.raises(error, match=message):
        remove_units(model, torch.randn(3, 4), {"a": [0, 2]})
    assert_unchanged(model, before)


def test_without_verification_the_caller_decides() -> None:
    result = remove_units(randomize(Stubborn("values")), torch.randn(3, 4), {"a": [0, 2]}, verify=False)
    assert result.model.b.in_features == 2
    assert result.max_abs_diff != result.max_abs_diff
    tolerant = remove_units(randomize(Stubborn("values")), torch.randn(3, 4), {"a": [0, 2]}, tolerance=2.0)
    assert tolerant.max_abs_diff == pytest.approx(1.0, abs=1e-5)


def test_weights_computed_in_the_forward_pass_are_refused() -> None:
    model = randomize(Mlp())
    nn.utils.parametrizations.weight_norm(model.b)
    widths = find_widths(model, torch.randn(2, 6))
    assert [width.name for width in widths] == []
    assert "parametrization" in widths.refused["b"]


def test_norm_over_a_width_keeps_it() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    widths = find_widths(randomize(model), torch.randn(2, 4))
    assert [width.name for width in widths] == ["2"]
    assert widths.refused["1"].startswith("1 (LayerNorm): layer_norm: its statistics join the channels")
    assert set(widths.refused) == {"0", "1", "4"}


def test_optimizer_and_new_bias_follow(tmp_path: Path) -> None:
    model = randomize(nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    result = remove_units(model, torch.randn(3, 4), {"0": [1, 2]}, optimizer=optimizer)
    assert result.optimizer is not None
    exp_avg = result.optimizer.state[result.model[2].weight]["exp_avg"]
    assert torch.equal(exp_avg, optimizer.state[model[2].weight]["exp_avg"][:, [1, 2]])
    with torch.no_grad():
        result.add_bias("2").copy_(torch.tensor([1.0, -1.0]))
    assert result.add_bias("2") is result.model[2].bias
    sa.save(result, tmp_path)
    assert torch.equal(sa.load(tmp_path, model)[2].bias, result.model[2].bias)
    with pytest.raises(ValueError, match=r"1 \(ReLU\): expected a layer"):
        result.add_bias("1")


def test_embeddings_are_producers() -> None:
    example = torch.zeros(1, 3, dtype=torch.long)
    widths = find_widths(randomize(Sequence()), example)
    assert widths.named("embed").producers == ["embed", "down"]
    small = remove_units(randomize(Sequence()), example, {"embed": [1, 2]}).model
    assert small.embed.embedding_dim == 2


class ResidualMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def test_the_work_of_finding_widths_is_linear_in_depth():
    """Counted in function calls: each width asks for its own reads, not for all."""
    from sparse_accel.channels.runs import Examples
    from sparse_accel.channels.width_search import widths_of
    from sparse_accel.removal.remove import followed

    def calls(depth: int) -> int:
        net = nn.Sequential(nn.Linear(3, 6), *(ResidualMLP() for _ in range(depth)), nn.Linear(6, 2))
        graph, _ = followed(net, Examples.of(torch.zeros(2, 3)))
        count = 0

        def counted(frame, event, arg):
            nonlocal count
            count += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(counted)
        try:
            widths = widths_of(graph, net)
        finally:
            sys.setprofile(before)
        assert len(widths) == depth + 1
        return count

    calls(2)  # whatever is done once
    at = [calls(depth) for depth in (4, 8, 16)]
    assert at[2] - at[1] < 2.2 * (at[1] - at[0])  # 2 where it is linear, 4 where it is quadratic
