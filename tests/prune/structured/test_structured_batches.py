"""ISpaSP on models that call layers a varying number of times: any order, the same bits; nothing that cannot run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from sparse_accel.prune import Calibration, ISpaSP
from sparse_accel.removal.compact import UnsupportedModelError


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def data(number: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3 + i % 3, 8, generator=generator) for i in range(number)]


def same(models: list[nn.Module]) -> bool:
    return all(
        torch.equal(a, b)
        for other in models[1:]
        for a, b in zip(models[0].parameters(), other.parameters(), strict=True)
    )


class Routed(nn.Module):
    """Each sample goes through one of three experts, each with a width of its own behind a norm."""

    def __init__(self, experts: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU()) for _ in range(experts)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        choice, out = (h[:, 0] * 8).floor().long() % len(self.experts), torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            rows = (choice == number).nonzero().flatten()
            if len(rows):
                out = out.index_copy(0, rows, expert(h[rows]))
        return self.head(h + out)


class Exit(nn.Module):
    """Blocks, each with a width; a batch leaves after the first one that it is sure of."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (nn.ModuleList(layers) for layers in zip(*[
            (nn.Linear(8, 12), nn.Linear(12, 8)) for _ in range(3)], strict=True))  # fmt: skip
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(F.relu(up(x)))
            if float(x.detach().mean()) > 0.1:
                break
        return self.head(x)


def example(net: nn.Module) -> Tensor:
    """One that reaches everything."""
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(3))
    return x - 1 if isinstance(net, Exit) else x


@pytest.mark.parametrize("make", [Routed, Exit])
@pytest.mark.parametrize(
    "options", [{}, {"refit": "dense"}, {"method": "ispasp"}, {"budget": {"params": 0.7}}], ids=str
)
def test_any_order_gives_the_same_bits(make: type[nn.Module], options: dict) -> None:
    net, batches = make().eval(), data()
    results = [ISpaSP(net, example(net), **options).run(order) for order in (batches, batches[::-1])]
    assert same([result.model for result in results])
    assert results[0].kept == results[1].kept
    assert len(results[0].kept) >= 3
    if "budget" not in options:
        assert all(2 * len(units) in (12, 16, 24) for units in results[0].kept.values())
    for batch in batches:
        assert torch.isfinite(results[0].model(batch)).all()


def test_experts_are_refit_to_their_own_samples() -> None:
    net, batches = Routed().eval(), data()
    result = ISpaSP(net, example(net), refit="dense").run(batches)
    targets = {change.name: change.target for change in result.report.widths}
    assert targets["stem.0"] == "dense"
    assert {target for name, target in targets.items() if name.startswith("experts")} == {"local"}
    one = ISpaSP(net, example(net), refit="dense").run([torch.cat(batches)])  # told by what runs differently only
    assert {change.target for change in one.report.widths} <= {"dense", "local"}
    assert all(torch.isfinite(one.model(batch)).all() for batch in batches)


def test_an_expert_without_samples_keeps_what_is_read_with_the_largest_weights() -> None:
    net = Routed(2).eval()
    with torch.no_grad():
        net.stem[2].weight[0] *= 1e-3
        net.stem[2].bias[0] = 0.1  # the data go to expert 0, the example to both
    x = torch.cat([data()[0], 300 * example(net)])
    result = ISpaSP(net, x, only=["experts.*"]).run(data())
    norms = net.experts[1][2].weight.square().sum(0)
    assert result.kept["experts.1.0"] == norms.argsort(descending=True)[:6].sort().values.tolist()


class Repeats(nn.Module):
    """Applies a block as often as the batch is long: once on the example."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(len(x)):
            x = torch.tanh(self.block(x))
        return self.down(F.relu(self.up(self.head(x))))


def test_widths_that_the_example_shows_too_little_of_are_left() -> None:
    net, batches = Repeats().eval(), data()
    result = ISpaSP(net, torch.randn(1, 8)).run(batches)
    assert list(result.kept) == ["head", "up"]
    assert any(
        "block: left whole: a batch calls block 5 times, example_inputs 1 times" in n for n in result.report.notes
    )
    for batch in batches:
        assert torch.isfinite(result.model(batch)).all()


class Branches(nn.Module):
    """Large inputs take another branch, which reads the same width or one of its own."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.up, self.down, self.other = nn.Linear(8, 12), nn.Linear(12, 4), nn.Linear(12 if shared else 8, 4)
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        if float(x.abs().max()) < 1:
            return self.down(F.relu(self.up(x)))
        return self.other(F.relu(self.up(x)) if self.shared else x)


def test_what_the_example_does_not_reach_is_checked() -> None:
    small = torch.rand(4, 8) / 2
    apart = ISpaSP(Branches(False).eval(), small).run([small, 9 * small])
    assert apart.model.up.out_features == 6
    assert any("other: batches call it, example_inputs do not" in note for note in apart.report.notes)
    net = Branches(True).eval()
    before = [parameter.clone() for parameter in net.parameters()]
    with pytest.raises(UnsupportedModelError, match=r"no example uses other\.weight, other\.bias: .* are kept"):
        ISpaSP(net, small).run([small, 9 * small])
    with pytest.raises(UnsupportedModelError, match=r"does not run on the calibration data: example_inputs .* other"):
        ISpaSP(net, small, unvisited="ignore").run([small, 9 * small])
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))


def test_order_of_plain_data_and_labels() -> None:
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(20, 8)
    parts = list(x.split(6))
    loader = DataLoader(TensorDataset(x, torch.zeros(20)), batch_size=6)
    ways = [parts, parts[::-1], loader, Calibration(loader, select=lambda item: item[0]), lambda: iter(parts[::-1])]
    assert same([ISpaSP(net, x[:2]).run(way).model for way in ways])
