"""Curvature IHT on stacks of matrices: each expert against its own inputs, whatever way the products are written."""

from __future__ import annotations

import warnings

import pytest
import torch
from expert_models import FLIPPED, FORMS, TRANSFORMERS, VOCABULARY, Mixture, mixtral, routed, tokens
from torch import nn

import sparse_accel as sa
from sparse_accel.prune import CurvatureIHT, layerwise_solve, load_sparse
from sparse_accel.prune.layerwise.solve import DEFAULTS


def zeros(tensor):
    return int((tensor == 0).sum())


@pytest.fixture
def data():
    return torch.randn(4, 40, 8, generator=torch.Generator().manual_seed(0))


def mixture(form, **options):
    torch.manual_seed(0)
    return Mixture(form, **options).eval()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("target", [0.5, "2:4"], ids=str)
def test_each_expert_is_solved_with_its_own_inputs(form, target, data):
    net = mixture(form)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    result = CurvatureIHT(net, target).run(list(data.split(1)))
    assert [layer.name for layer in result.report.layers] == ["up", "down", "head"]
    layout = "input,output" if form in FLIPPED else "output,input"
    assert [layer.stacked for layer in result.report.layers] == [layout, layout, ""]
    with torch.no_grad():
        first, second = routed(net, data)[0], routed(result.model, data)[1]
    for name, inputs in (("up", first), ("down", second)):
        for expert in range(3):
            dense, pruned = getattr(net, name)[expert].detach(), getattr(result.model, name)[expert].detach()
            if form in FLIPPED:
                dense, pruned = dense.T, pruned.T
            x = inputs[expert].double()
            expected = layerwise_solve(dense, x.T @ x, target)
            assert torch.equal(pruned != 0, expected != 0)
            torch.testing.assert_close(pruned, expected, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert result.report.left == {"router": "a parameter of Mixture, which is not supported"}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name):
    model = TRANSFORMERS[name]()
    result = CurvatureIHT(model, 0.5).run(tokens())
    stacks = [layer for layer in result.report.layers if layer.stacked]
    assert {layer.name.rpartition(".")[2] for layer in stacks} == {"gate_up_proj", "down_proj"}
    for layer in stacks:
        weight = result.model.get_parameter(layer.name)
        assert zeros(weight) == weight.numel() // 2
        assert {zeros(expert) for expert in weight} == {weight[0].numel() // 2}
        assert 0 < layer.error < 0.5
        assert layer.stacked == ("input,output" if name in ("gpt_oss", "llama4") else "output,input")
    report = result.report
    weights = [p for p in result.model.parameters() if p.dim() >= 2]
    assert report.weights == sum(p.numel() for p in weights)
    removed = sum(int((~mask).sum()) for mask in result.masks.values())
    assert report.model_sparsity == pytest.approx(removed / report.weights)
    pruned = sum(layer.numel for layer in report.layers)
    assert report.left_share == pytest.approx(1 - pruned / report.weights)
    assert f"{report.weights} weights of the model" in str(report)
    with torch.no_grad():
        assert bool(torch.isfinite(result.model(**tokens()[0]).logits).all())


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_however_the_experts_are_run(name):
    results = []
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        model = TRANSFORMERS[name]()
        model.config._experts_implementation = implementation
        result = CurvatureIHT(model, 0.5).run(tokens())
        assert result.model.config._experts_implementation == implementation
        assert model.config._experts_implementation == implementation
        results.append(result.model.state_dict())
    for other in results[1:]:
        assert all(torch.equal(value, other[key]) for key, value in results[0].items())


@pytest.mark.parametrize("method", DEFAULTS)
def test_an_expert_without_tokens_keeps_its_largest_weights(method, data):
    net = mixture("linear", idle=1)
    report = (result := CurvatureIHT(net, 0.75, method=method).run(data)).report
    assert report["up"].idle == report["down"].idle == (1,)
    assert "up: no input reached 1: their largest weights are kept" in str(report)
    for name in ("up", "down"):
        dense, pruned = getattr(net, name)[1].detach(), getattr(result.model, name)[1].detach()
        expected = dense.clone()
        sa.topk_threshold_(expected, None, dense.numel() // 4)
        assert torch.equal(pruned, expected)


def test_experts_that_only_later_batches_reach(data):
    batches = list(data.split(1))
    net = mixture("linear", idle=None)
    first = (batches[0].flatten(0, 1) @ net.router).argmax(1)
    batches[0] = batches[0].flatten(0, 1)[first == 0][None]  # the first batch: expert 0 alone
    result = CurvatureIHT(net, 0.5).run(batches)
    assert result.report["up"].idle == ()
    assert [zeros(expert) for expert in result.model.up] == [48, 48, 48]


@pytest.mark.parametrize("form", ["linear", "bmm", "grouped", "gathered"])
@pytest.mark.parametrize("whole", [False, True])
def test_padding_does_not_count(form, whole, data):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixture = mixture(form)

        def forward(self, x, mask):
            return self.mixture(x if whole else x.flatten(0, 1))

    net = Net().eval()
    mask = torch.ones(4, 40, dtype=torch.int64)
    mask[:, 25:] = 0
    other = data.clone()
    other[:, 25:] = 3 * torch.randn(4, 15, 8)
    batches = [{"x": x, "mask": m} for x, m in zip(data.split(2), mask.split(2), strict=True)]
    changed = [{"x": x, "mask": m} for x, m in zip(other.split(2), mask.split(2), strict=True)]
    results = [
        CurvatureIHT(net, 0.5, padding="mask", targets=["mixture.up", "mixture.down"]).run(x)
        for x in (batches, changed)
    ]
    for name in ("up", "down"):
        torch.testing.assert_close(getattr(results[0].model.mixture, name), getattr(results[1].model.mixture, name))
    plain = CurvatureIHT(net.mixture, 0.5, targets=["up", "down"]).run(data[:, :25])
    assert torch.equal(plain.model.up != 0, results[0].model.mixture.up != 0)
    assert torch.equal(plain.model.down != 0, results[0].model.mixture.down != 0)
    assert "forward" not in vars(net.mixture)


def test_padding_of_a_transformer():
    results = []
    for fill in (3, 7):
        batches = [
            {**batch, "attention_mask": (torch.arange(12) < 9).long().expand(4, 12).clone()} for batch in tokens()
        ]
        for batch in batches:
            batch["input_ids"][:, 9:] = fill
        results.append(CurvatureIHT(mixtral(), 0.5).run(batches).model.state_dict())
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


def test_the_front_is_pruned_when_a_stack_is_solved():
    model = mixtral(num_hidden_layers=2)
    kept = CurvatureIHT(model, 0.5).run(tokens())
    whole = CurvatureIHT(model, 0.5, activation_memory=0).run(tokens())
    for key, value in kept.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[key])


def test_global_shares_refinement_and_resuming(tmp_path, data):
    net = mixture("linear")
    options = {"allocation": "global", "refine": 1}
    result = CurvatureIHT(net, 0.6, resume_dir=tmp_path, **options).run(list(data.split(1)))
    total = net.up.numel() + net.down.numel() + net.head.weight.numel()
    assert zeros(result.model.up) + zeros(result.model.down) + zeros(result.model.head.weight) == round(0.6 * total)
    assert result.report.rounds[result.report.best] <= result.report.rounds[0]
    again = CurvatureIHT(net, 0.6, resume_dir=tmp_path, **options).run(list(data.split(1)))
    assert all(torch.equal(value, again.model.state_dict()[key]) for key, value in result.model.state_dict().items())
    assert again.report["up"] == result.report["up"]


def test_saved_masked_and_exported(tmp_path, data):
    result = CurvatureIHT(mixture("right"), "2:4").run(data)
    assert list(result.masks) == ["up", "down", "head.weight"]
    result.save(tmp_path)
    again = load_sparse(tmp_path, Mixture("right"))
    assert all(torch.equal(value, again.model.state_dict()[key]) for key, value in result.model.state_dict().items())
    assert again.report == result.report
    sparse = again.export("csr")
    assert list(sparse) == [*(f"{name}[{e}]" for name in ("up", "down") for e in range(3)), "head.weight"]
    assert torch.equal(sparse["up[1]"].to_dense(), again.model.up[1].T)
    assert bool(((again.model.up.mT.unflatten(2, (-1, 4)) != 0).sum(3) == 2).all())  # of each output's inputs
    optimizer = torch.optim.Adam(again.model.parameters(), lr=0.1)
    with again.masks.apply_to(optimizer):
        again.model(data).square().sum().backward()
        optimizer.step()
    assert torch.equal(again.model.up == 0, result.model.up == 0)


def test_under_autocast_and_in_inference_mode(data):
    net = mixture("linear")
    plain = CurvatureIHT(net, 0.5).run(data)
    with torch.autocast("cpu", torch.bfloat16):
        half = CurvatureIHT(net, 0.5).run(data)
    assert half.report["up"].columns == plain.report["up"].columns == 160
    assert float((half.model.up.eq(0) == plain.model.up.eq(0)).float().mean()) > 0.95
    with torch.inference_mode():
        inference = CurvatureIHT(net, 0.5, targets=["up", "down"]).run(data)
    assert torch.equal(inference.model.up, plain.model.up)


class Shared(nn.Module):
    """Stacks of parts, of uses that are no products, of both ways round."""

    def __init__(self):
        super().__init__()
        self.halves = nn.Parameter(torch.randn(2, 8, 6))
        self.both = nn.Parameter(torch.randn(2, 6, 6))
        self.place = nn.Parameter(torch.randn(1, 5, 6))
        self.scaled = nn.Parameter(torch.randn(2, 6, 6))
        self.unused = nn.Parameter(torch.randn(2, 6, 6))
        self.weight = nn.Parameter(torch.randn(2, 6, 6))  # the only one that is what it seems

    def forward(self, x):
        x = x + self.place
        x = torch.cat([x @ self.halves[0][:4].T, x @ self.halves[1][4:, :].T], -1)[..., :6]
        x = x @ self.both[0] + x @ self.both[1].T
        x = x @ (2 * self.scaled[0])
        return (x @ self.weight[0]).relu() @ self.weight[1]


def test_other_uses_leave_it_whole_and_are_said():
    net = nn.Sequential(Shared(), nn.Linear(6, 6))
    with pytest.warns(UserWarning, match=r"of the model's weights are left dense, see report.left: 0\.halves"):
        result = CurvatureIHT(net, 0.5).run(torch.randn(8, 5, 6))
    assert [layer.name for layer in result.report.layers] == ["0", "1"]
    assert list(result.masks) == ["0.weight", "1.weight"]
    left = result.report.left
    assert set(left) == {"0.halves", "0.both", "0.place", "0.scaled", "0.unused"}
    assert "parts of it" in left["0.halves"]
    assert "both ways" in left["0.both"]
    assert "is used in add" in left["0.place"]
    assert "is used in mul" in left["0.scaled"]
    assert "no product" in left["0.unused"]
    assert result.report.shares["0.halves"] == pytest.approx(96 / result.report.weights)
    assert result.report.left_share == pytest.approx(1 - (72 + 36) / result.report.weights)
    for name in ("halves", "both", "place", "scaled", "unused"):
        assert torch.equal(getattr(result.model[0], name), getattr(net[0], name))
    with pytest.raises(ValueError, match=r"targets: 0\.place \(Shared\) cannot be pruned: is used in add"):
        CurvatureIHT(net, 0.5, targets="0.place").run(torch.randn(8, 5, 6))


class Others(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.pair = nn.Bilinear(8, 8, 8)
        self.normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.up = nn.ConvTranspose1d(8, 8, 3)
        self.own = nn.Parameter(torch.randn(8, 8))
        self.last = nn.Linear(8, 8)

    def forward(self, ids):
        x = self.table(ids)
        x = self.attention(x, x, x)[0]
        x = self.recurrent(x)[0]
        x = self.normed(self.pair(x, x))
        return self.last(self.up(x.mT).mT @ self.own)


def test_every_weight_is_pruned_or_listed_with_its_share():
    net = Others()
    ids = torch.randint(50, (6, 7))
    with pytest.warns(UserWarning, match=r"left dense") as caught:
        report = CurvatureIHT(net, 0.5).run(ids).report
    assert set(report.left) == {
        "table", "attention.in_proj_weight", "attention.out_proj", "recurrent.weight_ih_l0", "recurrent.weight_hh_l0",
        "pair", "normed", "up", "own",
    }  # fmt: skip
    total = sum(p.numel() for p in net.parameters() if p.dim() >= 2)
    assert report.weights == total
    assert report.shares["table"] == pytest.approx(400 / total)
    assert report.shares["pair"] == pytest.approx(512 / total)
    assert report.shares["normed"] == pytest.approx((64 + 8) / total)
    assert sum(report.shares.values()) == pytest.approx(1 - 64 / total)
    assert report.sparsity == 0.5
    assert report.model_sparsity == pytest.approx(32 / total)
    (warning,) = caught
    assert "pair" in str(warning.message)
    assert "table" not in str(warning.message)  # no map of inputs
    assert "left dense: table: a table that is looked up in (Embedding)" in str(report)


def test_what_the_caller_leaves_is_listed_without_a_warning():
    net = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    ids = torch.randint(30, (20, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = CurvatureIHT(net, 0.5, targets="1").run(ids).report
        assert report.left == {"0": "a table that is looked up in (Embedding)", "2": "targets", "3": "targets"}
        assert report.shares == {"0": 240 / 432, "2": 64 / 432, "3": 64 / 432}
        tied = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 8), nn.Linear(8, 30, bias=False))
        tied[2].weight = tied[0].weight
        report = CurvatureIHT(tied, 0.5, skip=["2"]).run(ids).report
        assert report.left == {"2": "skip"}
        assert report.shares == {"2": 240 / 304}


def test_names_and_patterns_of_stacks(data):
    net = nn.Sequential(mixture("linear"), nn.Linear(4, 4))
    only = CurvatureIHT(net, 0.5, targets={"0.down": 0.25}).run(data).report
    assert [(layer.name, layer.sparsity) for layer in only.layers] == [("0.down", 0.25)]
    skipped = CurvatureIHT(net, 0.5, skip=["up"]).run(data).report
    assert skipped.left["0.up"] == "skip"
    assert only["0.down"].shape == (3, 8, 12)
    with pytest.raises(ValueError, match="matches no"):
        CurvatureIHT(net, 0.5, targets="sideways")


def test_tied_stacks_are_solved_once(data):
    net = nn.Sequential(mixture("linear"), mixture("linear"))
    net[0].head = nn.Linear(8, 8)
    net[1].up = net[0].up
    report = CurvatureIHT(net, 0.5).run(data).report
    assert report["0.up"].columns == 2 * data[..., 0].numel()
    assert report["0.down"].columns == data[..., 0].numel()


def test_vocabulary_is_what_the_batches_hold():
    assert all(int(batch["input_ids"].max()) < VOCABULARY for batch in tokens())
