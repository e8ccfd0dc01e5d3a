"""One budget for the whole model: it is kept, and spent where it hurts least."""

from __future__ import annotations

import numpy as np
import pytest
import structured_models as nets
import torch
from torch import nn

import sparse_accel as sa
from sparse_accel.prune import ISpaSP, find_widths
from sparse_accel.prune.structured.budget import spend
from sparse_accel.prune.structured.cost import CountedCost, LatencyCost, first_units, smaller
from sparse_accel.report import count_macs

IMAGES = nets.images()
VECTORS = torch.randn(96, 6, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("make", [nets.mlp, nets.resnet, nets.vgg, nets.concat, nets.gated, nets.mobile])
def test_costs_are_those_of_the_smaller_model(make) -> None:
    model = make().eval()
    x = (VECTORS if make in (nets.mlp, nets.gated) else IMAGES)[:2]
    widths = find_widths(model, x)
    generator = torch.Generator().manual_seed(0)
    cost = CountedCost("flops", model, x, widths)
    kept = {width.name: width.units for width in widths}
    total = cost.total
    for width in widths:
        count = int(torch.randint(1, width.units + 1, (), generator=generator))
        total -= float(cost.savings([width.name], np.array([count]), kept)[0])
        kept[width.name] = count
    true = count_macs(smaller(model, x, widths, kept), x)[""]
    assert cost.measure(kept) == true
    assert total == pytest.approx(true, rel=1e-6)


@pytest.mark.parametrize("kind", ["flops", "params"])
@pytest.mark.parametrize("share", [0.7, 0.5, 0.35])
def test_budget_is_kept_and_used(kind: str, share: float) -> None:
    model = nets.resnet(16)
    result = ISpaSP(model, IMAGES[:1], budget={kind: share}).run(IMAGES)
    before, after = result.report.macs if kind == "flops" else result.report.params
    assert 0.9 * share * before < after <= share * before


def test_budget_beats_uniform_at_equal_macs() -> None:
    """Half of one block's channels are idle: the budget finds them."""
    model = nets.resnet(16)
    with torch.no_grad():
        model.layer1[0].conv2.weight[:, 4:] *= 0.01
        model.layer1[0].bn2.running_var *= 0.3
    uniform = ISpaSP(model, IMAGES[:1], keep=0.5).run(IMAGES)
    share = uniform.report.macs[1] / uniform.report.macs[0]
    spent = ISpaSP(model, IMAGES[:1], budget={"flops": share}).run(IMAGES)
    assert spent.report.macs[1] <= uniform.report.macs[1]
    assert len(spent.kept["layer1.0.conv1"]) < 8
    with torch.no_grad():
        dense = model(IMAGES)
        errors = [float((result.model(IMAGES) - dense).square().sum()) for result in (uniform, spent)]
    assert errors[1] < errors[0]


def test_model_and_data_are_the_same_afterwards() -> None:
    model = nets.gated()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = ISpaSP(model, VECTORS[:1], budget={"params": 0.6}).run(VECTORS)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert first.kept == ISpaSP(model, VECTORS[:1], budget={"params": 0.6}).run(VECTORS).kept


def test_given_layers_are_kept_as_given() -> None:
    model = nets.resnet(16)
    result = ISpaSP(
        model, IMAGES[:1], budget={"flops": 0.5}, keep_per_layer={"layer2.conv1": 30}, skip=["layer2.conv2"]
    ).run(IMAGES)
    assert len(result.kept["layer2.conv1"]) == 30
    assert "layer2.conv2" not in result.kept
    assert result.report.macs[1] <= 0.5 * result.report.macs[0]


def test_impossible_budgets_say_what_is_possible() -> None:
    model = nets.resnet()
    with pytest.raises(ValueError, match=r"flops: expected at least 0\.\d+, what the widths can save, got 0.01"):
        ISpaSP(model, IMAGES[:1], budget={"flops": 0.01}).run(IMAGES)
    with pytest.raises(ValueError, match="budget: latency_ms: expected at least"):
        ISpaSP(model, IMAGES[:1], budget={"latency_ms": 1e-6}).run(IMAGES)


def test_latency_is_measured_and_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is replaced by one that counts parameters, so that the test does not depend on the machine."""
    from sparse_accel.prune.structured import cost as costs

    def count(models: list[nn.Module], example_inputs: torch.Tensor) -> list[float]:
        return [sum(parameter.numel() for parameter in model.parameters()) / 1000 for model in models]

    monkeypatch.setattr(costs, "latencies_ms", count)
    model = nets.mlp(32)
    total = sum(parameter.numel() for parameter in model.parameters()) / 1000
    result = ISpaSP(model, VECTORS[:1], budget={"latency_ms": 0.6 * total}).run(VECTORS)
    assert 0.5 * total < sum(parameter.numel() for parameter in result.model.parameters()) / 1000 <= 0.6 * total
    widths = find_widths(model, VECTORS[:1])
    cost = LatencyCost(model, VECTORS[:1], widths)
    kept = {width.name: 32 for width in widths}
    saved = cost.savings(["0"], np.array([32, 16, 8, 1]), kept)
    assert saved[0] == 0
    assert (np.diff(saved) > 0).all()


class _Flat:
    """A cost of one per unit."""

    def __init__(self, units: dict[str, int]) -> None:
        self.total = float(sum(units.values()))
        self.widths = {name: type("W", (), {"units": count})() for name, count in units.items()}

    def savings(self, names: list[str], points: np.ndarray, kept: dict[str, int]) -> np.ndarray:
        return sum(kept[name] - points for name in names).astype(float)

    def measure(self, kept: dict[str, int]) -> float:
        return float(sum(kept.values()))


def test_spending_follows_the_cheapest_curve() -> None:
    points = np.array([4, 3, 2, 1])
    curves = {"a": (points, np.array([0.0, 1.0, 3.0, 9.0])), "b": (points, np.array([0.0, 2.0, 4.0, 6.5]))}
    cost = _Flat({"a": 4, "b": 4})
    every = {"a": 4, "b": 4}
    expected = [(8, (4, 4)), (7, (3, 4)), (5, (2, 3)), (4, (2, 2)), (3, (2, 1)), (2, (1, 1)), (0, (1, 1))]
    for limit, kept in expected:
        assert tuple(spend(curves, cost, every, limit).values()) == kept
    hump = {"a": (points, np.array([0.0, 5.0, 5.5, 6.0])), "b": (points, np.array([0.0, 3.0, 6.0, 9.0]))}
    assert spend(hump, cost, every, 5) == {"a": 1, "b": 4}


def test_first_units_are_balanced() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU(),
                          nn.Flatten(), nn.Linear(512, 2))  # fmt: skip
    width = find_widths(model, IMAGES[:1])[0]
    assert first_units(width, 4).sort().values.tolist() == [0, 1, 4, 5]
    result = ISpaSP(model, IMAGES[:1], budget={"flops": 0.6}).run(IMAGES)
    assert result.model[2].groups == 2
    assert isinstance(result, sa.prune.StructuredResult)
