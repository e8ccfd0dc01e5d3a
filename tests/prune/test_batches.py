"""Statistics of every call of every batch, in any order: recurrence, early exit, mixtures of experts."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from sparse_accel.calibration import batches as batches_module
from sparse_accel.calibration.batches import Batches, fingerprint
from sparse_accel.calibration.data import Calibration
from sparse_accel.prune import CurvatureIHT
from sparse_accel.prune.unstructured.steps import merged


def data(number: int = 6, features: int = 8, seed: int = 0) -> list[Tensor]:
    """Batches of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3 + i % 4, features, generator=generator) for i in range(number)]


def orders(items: list, count: int = 3) -> list[list]:
    return [items, items[::-1], items[2:] + items[:2]][:count]


def same(models: list[nn.Module]) -> bool:
    return all(
        torch.equal(a, b)
        for other in models[1:]
        for a, b in zip(models[0].parameters(), other.parameters(), strict=True)
    )


class Recurrent(nn.Module):
    """Applies one layer as often as the sequence is long."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.Linear(8 + 6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:  # [length, 8]
        state = x.new_zeros(6)
        for row in x:
            state = torch.tanh(self.cell(torch.cat([row, state])))
        return self.head(state)


class EarlyExit(nn.Module):
    """Leaves when it is sure; how many blocks run depends on the sample."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
            if float(x.mean()) > 0.05:
                break
        return self.head(x)


class Looped(nn.Module):
    """One block again and again, up to a norm that depends on the sample."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(1 + int(x.abs().sum()) % 3):
            x = torch.tanh(self.block(x))
        return self.head(x)


class Mixture(nn.Module):
    """A stem, and experts of which each sample takes the one that its first feature says."""

    def __init__(self, experts: int = 4, unused: int = 0) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(experts + unused)
        )
        self.head = nn.Linear(8, 3)
        self.count = experts

    def choice(self, h: Tensor) -> Tensor:
        return (h[:, 0] * 4).floor().long() % self.count

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        choice, out = self.choice(h), torch.zeros_like(h)
        for number in range(self.count):
            rows = (choice == number).nonzero().flatten()
            if len(rows):
                out = out.index_copy(0, rows, self.experts[number](h[rows]))
        return self.head(out)


@pytest.mark.parametrize("make", [Recurrent, EarlyExit, Looped, Mixture])
@pytest.mark.parametrize("options", [{}, {"refine": 1}, {"allocation": "global"}], ids=["plain", "refine", "global"])
def test_any_order_gives_the_same_bits(make: Callable[[], nn.Module], options: dict) -> None:
    torch.manual_seed(0)
    net = make()
    results = [CurvatureIHT(net, 0.5, **options).run(order) for order in orders(data())]
    assert same([result.model for result in results])
    plain = CurvatureIHT(net, 0.5, activation_memory=0, **options).run(data())
    assert same([results[0].model, plain.model])
    assert [layer.columns for layer in plain.report.layers] == [layer.columns for layer in results[0].report.layers]


def test_every_call_of_every_batch_counts() -> None:
    torch.manual_seed(0)
    net, batches = Recurrent(), data()
    report = CurvatureIHT(net, 0.5).run(batches).report
    assert report["cell"].columns == sum(len(batch) for batch in batches)
    assert report["head"].columns == len(batches)
    torch.manual_seed(0)
    looped = Looped()
    report = CurvatureIHT(looped, 0.5, targets=["block"]).run(batches).report
    assert report["block"].columns == sum(len(x) * (1 + int(x.abs().sum()) % 3) for x in batches)


def test_layers_that_only_later_batches_reach_are_pruned() -> None:
    torch.manual_seed(0)
    net = Mixture()
    batches = [x[net.choice(net.stem(x)) == number] for number in range(4) for x in data(seed=number)]
    batches = [x for x in batches if len(x)]  # each reaches one expert
    for order in orders(batches):
        result = CurvatureIHT(net, 0.5).run(order)
        assert len(result.report.layers) == 1 + 2 * 4 + 1
        assert not result.report.left
        for expert in result.model.experts:
            assert int((expert[0].weight == 0).sum()) == 48


def test_what_no_batch_reaches_is_left_with_its_share(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    net = Mixture(unused=1)
    with caplog.at_level(logging.WARNING, "sparse_accel"):
        report = CurvatureIHT(net, 0.5).run(data()).report
    total = 64 + 5 * 192 + 24
    reason = "the forward pass does not call it for any calibration batch"
    assert report.left == {"experts.4.0": reason, "experts.4.2": reason}
    assert report.shares == pytest.approx({"experts.4.0": 96 / total, "experts.4.2": 96 / total})
    assert "experts.4.0 (Linear) is left dense" in caplog.text
    with pytest.raises(ValueError, match=r"targets: experts\.4\.2 \(Linear\): .*does not call"):
        CurvatureIHT(net, 0.5, targets=["experts.4.2"]).run(data())


class Rerouted(Mixture):
    """Pruning the stem sends every sample to expert 0: a feature that decides has one small weight."""

    def __init__(self) -> None:
        super().__init__(2)
        with torch.no_grad():
            self.stem.weight[0] = 0
            self.stem.weight[0, 0] = 1e-4

    def choice(self, h: Tensor) -> Tensor:
        return (h[:, 0] > 0).long()


def test_samples_that_pruning_sends_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    net = Rerouted()
    with caplog.at_level(logging.WARNING, "sparse_accel"):
        results = [CurvatureIHT(net, 0.5).run(order) for order in orders(data())]
    assert "experts.1.0 (Linear): reached in the dense model only" in caplog.text
    assert same([result.model for result in results])
    report = results[0].report
    seen = sum(int((net.choice(net.stem(x)) == 1).sum()) for x in data())
    assert report["experts.1.0"].columns == report["experts.1.2"].columns == seen
    assert report["experts.0.0"].columns == sum(map(len, data()))
    assert not report.left
    assert all(torch.isfinite(results[0].model(x)).all() for x in data())


def test_held_out_batches_alone_may_reach_a_layer(tmp_path) -> None:
    torch.manual_seed(0)
    net = Mixture(2)
    every = torch.cat(data())
    chosen = net.choice(net.stem(every))
    parts, rare = list(every[chosen == 0].chunk(2)), every[chosen == 1]

    def place(candidate: Tensor) -> int:
        return contents(Batches(Calibration([*parts, candidate]))).index(fingerprint(candidate))

    (candidate, *_) = (rare[:count] for count in range(1, len(rare) + 1) if place(rare[:count]) == 1)  # held out
    for _ in range(2):  # the second time from the record
        result = CurvatureIHT(net, 0.5, skip=["stem"], refine=1, resume_dir=tmp_path).run([*parts, candidate])
        assert set(result.report.left) == {"stem", "experts.1.0", "experts.1.2"}
        assert "none of the batches to learn from reaches it" in result.report.left["experts.1.0"]
        assert torch.equal(result.model.experts[1][0].weight, net.experts[1][0].weight)
        assert "experts.1.0.weight" not in dict(result.masks.items())
    shares = CurvatureIHT(net, 0.5, skip=["stem"], refine=1, allocation="global").run([*parts, candidate])
    assert shares.report.sparsity == pytest.approx(0.5, abs=0.01)


# ---------------------------------------------------------------- the order of the batches


def contents(batches: Calibration) -> list[int]:
    return list(map(fingerprint, batches.batches()))


def loader(order: list[Tensor]) -> DataLoader:
    return DataLoader(order, batch_size=None)


KINDS: dict[str, Callable[[list[Tensor]], object]] = {
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "DataLoader": loader,
    "function": lambda order: lambda: list(order),
    "function of an iterator": lambda order: lambda: iter(order),
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_come_in_the_order_of_their_contents(kind: str) -> None:
    expected = sorted(map(fingerprint, data()))
    for order in orders(data()):
        batches = Batches(Calibration(KINDS[kind](order)))
        assert contents(batches) == contents(batches) == expected
        assert not batches.changed
        assert not batches.fresh


def test_a_function_may_shuffle() -> None:
    turn = [0]

    def shuffled() -> list[Tensor]:
        turn[0] += 1
        return orders(data())[turn[0] % 3]

    batches = Batches(Calibration(shuffled))
    assert contents(batches) == contents(batches) == contents(batches)
    assert not batches.changed


def test_a_shuffling_loader_is_read_once() -> None:
    shuffling = DataLoader(TensorDataset(torch.arange(40.0).view(20, 2)), batch_size=5, shuffle=True)
    batches = Batches(Calibration(shuffling))
    assert contents(batches) == contents(batches)


def test_memory_that_is_used_again_is_copied() -> None:
    buffer = torch.zeros(2)

    def reused():
        for number in range(4):
            buffer.fill_(number)
            yield buffer

    batches = Batches(Calibration(reused))
    values = sorted(float(batch[0]) for batch in batches.batches())
    assert values == [0.0, 1.0, 2.0, 3.0]


def test_what_is_too_large_to_hold_keeps_its_order(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(batches_module, "HELD_BYTES", 200)
    for order in orders(data()):
        for kind in ("DataLoader", "function of an iterator"):
            caplog.clear()
            batches = Batches(Calibration(KINDS[kind](order)))
            assert contents(batches) == contents(batches) == list(map(fingerprint, order))
            assert caplog.text.count("taken in its own order") == 1


def test_parts_share_the_order_and_know_their_batches() -> None:
    whole = Batches(Calibration(data()))
    everything = contents(whole)
    odd, even = whole.part(lambda number: number % 2 == 1), whole.part(lambda number: number % 2 == 0)
    assert contents(odd) == everything[1::2]
    assert contents(even) == everything[::2]
    assert not odd.fresh
    with pytest.raises(ValueError, match="at least one batch for this part"):
        contents(whole.part(lambda number: False))


def test_batches_that_change_are_noticed() -> None:
    batches = data()
    ordered = Batches(Calibration(batches))
    contents(ordered)
    batches[0].add_(1)
    contents(ordered)
    assert ordered.changed


def test_equal_tensors_with_other_values_beside_them() -> None:
    items = [{"x": torch.ones(1), "scale": scale} for scale in (3, 1, 2)]
    ways = {tuple(batch["scale"] for batch in Batches(Calibration(order)).batches()) for order in orders(items)}
    assert len(ways) == 1


def test_sparse_and_complex_tensors_have_contents() -> None:
    one = torch.eye(3).to_sparse()
    assert fingerprint(one) == fingerprint(torch.eye(3).to_sparse()) != fingerprint((2 * torch.eye(3)).to_sparse())
    wave = torch.tensor([1 + 2j])
    assert fingerprint(wave.conj()) == fingerprint(torch.tensor([1 - 2j])) != fingerprint(wave)
    assert fingerprint(torch.eye(3).to_sparse_csr()) != fingerprint(torch.zeros(3, 3).to_sparse_csr())


@pytest.mark.parametrize(
    "sequences, expected",
    [
        ([("a", "b", "c")], "abc"),
        ([("a", "b", "d"), ("a", "c", "d")], "acbd"),
        ([("a", "d"), ("a", "b", "c", "d")], "abcd"),
        ([("b",), ("a", "b")], "ab"),
        ([(), ("a",), ()], "a"),
    ],
)
def test_orders_are_merged(sequences: list[tuple[str, ...]], expected: str) -> None:
    assert "".join(merged(sequences)) == expected


# ---------------------------------------------------------------- items with labels


def test_labels_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(12, 8), torch.randint(0, 3, (12,))
    labelled = DataLoader(TensorDataset(x, y), batch_size=4)
    with caplog.at_level(logging.WARNING, "sparse_accel"):
        result = CurvatureIHT(net, 0.5).run(labelled)
    assert caplog.text.count("items have 2 elements, the model's forward takes 1") == 1
    assert "Calibration(data, select=" in caplog.text
    assert same([result.model, CurvatureIHT(net, 0.5).run(list(x.split(4))).model])
    assert same([result.model, CurvatureIHT(net, 0.5).run(Calibration(labelled, select=lambda item: item[0])).model])
    tuples = [(a, b, "name") for a, b in zip(x.split(4), y.split(4), strict=True)]
    assert same([result.model, CurvatureIHT(net, 0.5).run(tuples).model])


def test_items_that_a_model_takes_are_passed_whole() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            return self.layer(x if y is None else x + F.one_hot(y, 4))

    class Any(Two):
        def forward(self, *inputs: Tensor) -> Tensor:
            return super().forward(*inputs)

    x, y = torch.randn(6, 4), torch.randint(0, 4, (6,))
    for make in (Two, Any):
        torch.manual_seed(0)
        net = make()
        with_y, without = CurvatureIHT(net, 0.5).run([(x, y)]), CurvatureIHT(net, 0.5).run([x])
        assert not same([with_y.model, without.model])
        with pytest.raises(ValueError, match=r"calibration: .* 2 positional inputs.*select=.*: RuntimeError"):
            CurvatureIHT(net, 0.5).run([(x, y + 9)])
