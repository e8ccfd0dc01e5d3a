"""ISpaSP on mixtures whose experts are stacks: each expert keeps the best of its own neurons."""

from __future__ import annotations

import copy

import pytest
import torch
from expert_models import FLIPPED, FORMS, TRANSFORMERS, Mixture, mixtral, routed, tokens
from torch import nn

import sparse_accel as sa
from sparse_accel.prune import ISpaSP, find_widths, gram_obs, refit, remove_units
from sparse_accel.prune.structured.report import left_stacks
from sparse_accel.removal.compact import CompactError, UnsupportedModelError
from sparse_accel.report.costs import _grouped_flops, count_macs

E, DIM, INNER = 3, 8, 12


def net(form="linear", **options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, DIM), Mixture(form, **options)).eval()


def data(count=64, seed=1):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def shares(notes):
    return {
        note.split(" (")[0]: float(note.split(": ")[-1].split(" %")[0]) for note in notes if "left whole: units" in note
    }


def down_of(model, form):
    return model.down.detach().mT if form in FLIPPED else model.down.detach()  # [E, out, neurons]


@pytest.mark.parametrize("form", FORMS)
def test_every_expert_keeps_what_its_own_inputs_ask_for(form):
    model, x = net(form), data()
    keep = 4 if form == "grouped" else 5  # which asks for rows of 16 bytes
    result = ISpaSP(model, x[:4], only=["3"], keep_per_layer={"3": keep}).run(x)
    hidden = [h.detach().double() for h in routed(model[3], model[:3](x))[1]]
    for e, h in enumerate(hidden):
        gram, weight = h.T @ h, down_of(model[3], form)[e].double()
        kept = gram_obs(gram, weight @ gram, weight, keep=keep, ridge=1e-3).kept
        assert result.kept["3"][e] == kept.tolist()
        expected = refit(gram, weight @ gram, weight, kept, ridge=1e-3).float()
        torch.testing.assert_close(down_of(result.model[3], form)[e], expected, rtol=1e-3, atol=1e-4)
        up, small = (m.up.detach()[e].T if form in FLIPPED else m.up.detach()[e] for m in (model[3], result.model[3]))
        assert torch.equal(small, up[kept])
    change = result.report.widths[0]
    assert (change.kind, change.units, change.target) == ("experts", (INNER, keep), "local")
    assert change.error[1] < change.error[0]
    assert not shares(result.report.notes)


def test_the_error_reported_is_that_of_the_experts_results():
    model, x = net(), data()
    result = ISpaSP(model, x[:4], only=["3"]).run(x)
    hidden = routed(model[3], model[:3](x))[1]
    wanted = missed = 0.0
    for e, h in enumerate(hidden):
        kept = result.kept["3"][e]
        dense = h @ model[3].down[e].T
        small = h[:, kept] @ result.model[3].down[e].T
        wanted, missed = (
            wanted + float(dense.detach().square().sum()),
            missed + float((dense - small).detach().square().sum()),
        )
    assert result.report.widths[0].error[1] == pytest.approx(missed / wanted, rel=1e-4)


def test_the_layers_around_are_pruned_first_and_experts_see_the_pruned_front():
    model, x = net(), data()
    result = ISpaSP(model, x[:4], 0.5).run(x)
    assert list(result.kept) == ["0", "3"]
    assert result.model[0].out_features == 8
    assert tuple(result.model[3].up.shape) == (E, 4, DIM)  # of 6, rows of 16 bytes
    hidden = routed(model[3], result.model[:3](x))[1]
    gram = hidden[0].detach().double().T @ hidden[0].detach().double()
    weight = model[3].down[0].detach().double()
    assert result.kept["3"][0] == gram_obs(gram, weight @ gram, weight, keep=4, ridge=1e-3).kept.tolist()


def test_an_expert_without_inputs_keeps_its_largest_weights_and_is_named():
    model, x = net(idle=1), data()
    result = ISpaSP(model, x[:4], only=["3"]).run(x)
    (note,) = [note for note in result.report.notes if "no calibration inputs" in note]
    assert note.startswith("3: 1 of 3 experts got no calibration inputs (1): they keep the neurons of the largest")
    score = model[3].up[1].square().sum(1) * model[3].down[1].square().sum(0)
    assert result.kept["3"][1] == score.topk(4).indices.sort().values.tolist()
    assert torch.equal(result.model[3].down[1], model[3].down[1][:, result.kept["3"][1]])  # no refit


@pytest.mark.parametrize("method", ["ispasp", "gram_cosamp", "energy", "magnitude", "random"])
@pytest.mark.parametrize("fit", ["local", "bias", None])
def test_methods_and_refits(method, fit):
    model, x = net(), data()
    result = ISpaSP(model, x[:4], only=["3"], method=method, refit=fit, seed=3).run(x)
    assert [len(kept) for kept in result.kept["3"]] == [4] * E
    hidden = [h.detach().double() for h in routed(model[3], model[:3](x))[1]]
    if method == "energy":
        for e, h in enumerate(hidden):
            score = h.square().sum(0) * model[3].down[e].double().square().sum(0)
            assert result.kept["3"][e] == score.topk(4).indices.sort().values.tolist()
    if method == "magnitude":
        assert result.kept["3"][0] == model[3].up[0].square().sum(1).topk(4).indices.sort().values.tolist()
    if fit != "local":  # there is no bias that could make up for anything
        for e, kept in enumerate(result.kept["3"]):
            assert torch.equal(result.model[3].down[e], model[3].down[e][:, kept])
    error = result.report.widths[0].error
    assert (error is None) == (method in ("magnitude", "random") and fit is None)


def test_ispasp_takes_the_sums_of_each_experts_activations():
    model, x = net(), data()
    result = ISpaSP(model, x[:4], only=["3"], method="ispasp").run(x)
    for e, h in enumerate(routed(model[3], model[:3](x))[1]):
        chosen = sa.prune.ispasp_select(h.sum(0), model[3].down[e].detach(), 4)
        assert result.kept["3"][e] == chosen.kept.tolist()


def test_batches_in_any_order_and_padding():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x, attention_mask=None):
            return self.inner(x)

    torch.manual_seed(2)
    model = Padded().eval()
    batches = [{"x": torch.randn(4, n, 6), "attention_mask": torch.ones(4, n)} for n in (5, 3, 7)]
    pruner = ISpaSP(model, batches[0], only=["inner.3"])
    result = pruner.run(batches)
    again = pruner.run(batches[::-1])
    assert result.kept == again.kept
    assert torch.equal(result.model.inner[3].down, again.model.inner[3].down)
    for batch in batches:  # what stands in padded positions does not count
        batch["attention_mask"][1:, -2:] = 0
    padded = pruner.run(batches)
    noisy = copy.deepcopy(batches)
    for batch in noisy:
        batch["x"][1:, -2:] = 1e3
    other = pruner.run(noisy)
    assert padded.kept == other.kept
    assert torch.equal(padded.model.inner[3].down, other.model.inner[3].down)
    assert not torch.equal(padded.model.inner[3].down, result.model.inner[3].down)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name, tmp_path):
    model = TRANSFORMERS[name]()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    heads = any(width.kind == "heads" for width in find_widths(model, tokens()[0]))
    result = ISpaSP(model, tokens()[0], 0.7, skip=["heads"] if heads else []).run(tokens())
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    units, keep = (24, 16) if name == "mixtral" else (12, 8)
    (change,) = [width for width in result.report.widths if width.kind == "experts"]
    assert change.units == (units, keep)
    experts = result.model.get_submodule(change.name)
    assert keep in experts.down_proj.shape[1:]
    assert 2 * keep in experts.gate_up_proj.shape[1:]
    assert not shares(result.report.notes)
    before, after = result.report.macs
    assert after < before
    loaded = sa.load(sa.save(result, tmp_path), TRANSFORMERS[name]())
    with torch.no_grad():
        small, dense = result.model(**tokens()[0]).logits, model(**tokens()[0]).logits
        assert torch.equal(loaded(**tokens()[0]).logits, small)
        assert 0 < float((small - dense).norm() / dense.norm()) < 0.1
    if name in ("mixtral", "qwen3", "gpt_oss"):
        key = "moe_intermediate_size" if name == "qwen3" else "intermediate_size"
        assert getattr(result.model.config, key) == keep
        result.model.save_pretrained(tmp_path / "hf")
        again = type(model).from_pretrained(tmp_path / "hf").eval()
        with torch.no_grad():
            torch.testing.assert_close(again(**tokens()[0]).logits, small)
    if name == "gpt_oss":  # with biases that make up for the means
        assert bool(experts.down_proj_bias.any())


def test_a_budget_spends_experts_too():
    model = mixtral()
    for budget in ("flops", "params"):
        result = ISpaSP(model, tokens()[0], budget={budget: 0.75}, only=["experts"]).run(tokens())
        before, after = result.report.macs if budget == "flops" else result.report.params
        assert 0.5 * before < after <= 0.75 * before
        (kept,) = result.kept.values()
        assert len({len(own) for own in kept}) == 1
        assert len(kept[0]) % 4 == 0


def test_macs_of_grouped_products_are_those_of_the_products_one_by_one():
    model, x = net("grouped"), data(17)
    same = net("linear")
    same.load_state_dict(model.state_dict())
    grouped, single = count_macs(model, x), count_macs(same, x)
    assert grouped[""] == single[""] > 17 * 2 * DIM * INNER
    batch = torch.randn(E, 5, DIM)
    assert _grouped_flops(batch.shape, torch.Size((E, DIM, 7))) == 2 * E * 5 * DIM * 7
    assert _grouped_flops(torch.Size((4, 9)), torch.Size((9, 6)), torch.Size((E,))) == 2 * 4 * 9 * 6


def test_fine_tuning_between_widths():
    model, x = net(), data()
    seen = []

    def tune(small, name):
        seen.append((name, tuple(small[3].down.shape)))
        with torch.no_grad():
            small[3].down.mul_(2)

    plain = ISpaSP(model, x[:4], 0.5).run(x)
    result = ISpaSP(model, x[:4], 0.5, fine_tune=tune).run(x)
    assert seen == [("0", (E, DIM, INNER)), ("3", (E, DIM, 4))]
    assert result.kept["0"] == plain.kept["0"]
    kept = torch.tensor(result.kept["3"])
    assert tuple(kept.shape) == (E, 4)
    hidden = routed(model[3], result.model[:3](x))[1]
    h = hidden[0].detach().double()
    weight = 2 * model[3].down[0].detach().double()
    expected = 2 * refit(h.T @ h, weight @ (h.T @ h), weight, kept[0], ridge=1e-3)
    torch.testing.assert_close(result.model[3].down[0].double(), expected, rtol=1e-3, atol=1e-4)


def test_remove_units_takes_neurons_of_each_expert():
    model, x = net(), data()
    kept = [[0, 1, 5, 7], [2, 3, 4, 11], [8, 0, 3, 1]]
    result = remove_units(model, x, {"3": kept})
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for e, own in enumerate(kept):
            masked[3].down[e][:, [n for n in range(INNER) if n not in own]] = 0
    torch.testing.assert_close(result.model(x), masked(x))
    same = remove_units(model, x, {"3": [0, 1, 2, 3]}).model
    assert torch.equal(same[3].up, model[3].up[:, :4])
    for wrong, words in (
        ([[0, 1], [2, 3]], r"kept\['3'\]: expected indices \[3, n\], as many of each expert, got the shape \[2, 2\]"),
        ([[0, 0], [1, 2], [1, 2]], r"kept\['3'\]: expected distinct indices below 12, got \[0, 0\]"),
        ([[0, 12], [1, 2], [1, 2]], r"kept\['3'\]: expected distinct indices below 12"),
        (torch.zeros(E, 0, dtype=torch.int64), "expected a non-empty vector"),
    ):
        with pytest.raises(ValueError, match=words):
            remove_units(model, x, {"3": wrong})


def test_numbers_that_grouped_products_do_not_take_are_refused_whole():
    model, x = net("grouped"), data()
    with pytest.raises(CompactError, match="does not run"):
        remove_units(model, x, {"3": [0, 1, 2, 3, 4]})
    width = find_widths(model, x).named("3")
    assert (width.granule, find_widths(net(inner=6), x).named("3").granule) == (4, 1)


class Softmax(Mixture):
    """An expert's neurons share a softmax, so that none goes alone."""

    def one(self, expert, x):
        return (x @ self.up[expert].T).softmax(-1) @ self.down[expert].T


def test_what_is_not_found_is_named_with_its_share():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, DIM), Softmax("linear")).eval()
    x = data()
    result = ISpaSP(model, x[:4], 0.5).run(x)
    assert list(result.kept) == ["0"]
    total = sum(p.numel() for p in model.parameters() if p.dim() >= 2)
    found = shares(result.report.notes)
    assert set(found) == {"3.up", "3.down"}
    assert found["3.up"] == pytest.approx(100 * model[3].up.numel() / total, abs=0.1)
    assert "note: 3.up (Softmax): left whole" in str(result.report)
    alone = Softmax("linear").eval()
    with pytest.raises(UnsupportedModelError, match=r"nothing can be pruned: .*up \(Softmax\): left whole.*of the"):
        ISpaSP(alone, torch.randn(4, DIM)).run(torch.randn(64, DIM))


def test_a_reader_that_is_used_otherwise_leaves_the_width_whole():
    class Scaled(Mixture):
        def one(self, expert, x):
            return torch.relu(x @ self.up[expert].T) @ (0.5 * self.down[expert]).T

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, DIM), Scaled("linear")).eval(), data()
    result = ISpaSP(model, x[:4], 0.5).run(x)
    assert result.kept["1"] == [list(range(INNER))] * E
    assert "1: left whole: 1.down is used in mul: its inputs cannot be told" in result.report.notes
    assert set(shares(result.report.notes)) == {"1.up", "1.down"}
    free = ISpaSP(model, x[:4], 0.5, method="magnitude", refit=None).run(x)  # which needs no inputs
    assert tuple(free.model[1].down.shape) == (E, DIM, 4)


def test_convolutions_are_no_stacks():
    assert left_stacks(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose1d(4, 2, 3), nn.Linear(2, 2))) == []
