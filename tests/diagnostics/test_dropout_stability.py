"""Dropout stability: the losses are those of networks changed by hand, and nothing else changes."""

from __future__ import annotations

import copy
import json
import math
import random
import zlib

import numpy as np
import pytest
import torch
from diagnosed_models import Conv, Gated, GatedTwice, Residual, mlp, prepared, samples, shaken, transposed, unchanged
from torch import nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.channels.graph import UnsupportedModelError
from sparse_accel.diagnostics import dropout_stability
from sparse_accel.diagnostics._outer import Moments, choose_units, rescale
from sparse_accel.diagnostics._passes import Bench, Samples
from sparse_accel.removal.remove import find_widths


def masked_loss(model, data, width, kept, factor):
    """The loss with what a width's readers take multiplied by hand: 0 or the factor."""
    model = copy.deepcopy(model).eval()
    handles = []
    for consumer in width.consumers:
        scale = torch.zeros(consumer.channels.numel())
        scale[consumer.channels[kept].flatten()] = factor

        def hook(module, args, scale=scale):
            shape = [1, -1, *[1] * (args[0].dim() - 2)] if isinstance(module, nn.modules.conv._ConvNd) else [-1]
            return (args[0] * scale.reshape(shape),)

        handles.append(model.get_submodule(consumer.module).register_forward_pre_hook(hook))
    with torch.no_grad():
        return float(F.cross_entropy(model(data[0]), data[1]))


MODELS = {
    "two layers": lambda: mlp(17),
    "three layers": lambda: mlp(14, 9),
    "convolutions": lambda: shaken(Conv(), 1),
    "gated": Gated,
    "gated twice": GatedTwice,
    "transposed": transposed,
}


@pytest.mark.parametrize("kind", MODELS)
def test_rescaled_losses_are_those_of_masks(kind: str) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]()
    data = samples(model)
    report = dropout_stability(model, F.cross_entropy, data, keep=0.4, trials=2, batch_size=7, seed=3)
    widths = find_widths(model, data[0])
    with torch.no_grad():
        assert report.loss == pytest.approx(float(F.cross_entropy(copy.deepcopy(model).eval()(data[0]), data[1])))
    assert [row.name for row in report.layers] == [width.name for width in widths]
    for row, width in zip(report.layers, widths, strict=True):
        generator = torch.Generator().manual_seed(zlib.crc32(f"3 {width.name}".encode()))
        for loss, change in zip(row.losses, row.changes, strict=True):
            kept = choose_units(width, 0.4, generator)
            assert len(kept) == row.kept == max(1, round(0.4 * width.units))
            expected = masked_loss(model, data, width, kept, width.units / len(kept))
            assert loss == pytest.approx(expected, rel=1e-5)
            assert change == loss - report.loss
    assert len(report.together.losses) == 2


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_keeping_all_changes_nothing_to_the_bit(kind: str, refit: bool) -> None:
    model = MODELS[kind]()
    report = dropout_stability(model, F.cross_entropy, samples(model), keep=1.0, trials=2, refit=refit)
    for row in (*report.layers, report.together):
        assert row.losses == (report.loss,) * 2
        assert row.change == row.worst == 0.0


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("make", [lambda: mlp(8, 6), lambda: shaken(Conv(), 1), Gated])
def test_the_model_stays(make, refit: bool) -> None:
    model = prepared(make())
    data = samples(model)
    kept = [tensor.clone() for tensor in data]
    random.seed(1), np.random.seed(2), torch.manual_seed(3)  # noqa: NPY002
    with unchanged(model):
        dropout_stability(model, F.cross_entropy, data, refit=refit)
    assert all(torch.equal(one, other) for one, other in zip(data, kept, strict=True))


def test_random_layers_and_written_buffers() -> None:
    """A forward pass that draws numbers and counts itself: every loss is taken alike, the model's count stays."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.down(F.relu(self.up(x + 0.1 * torch.randn_like(x)))) * (1 + 0.01 * self.calls)

    model = Noisy()
    with unchanged(model):
        report = dropout_stability(model, F.cross_entropy, samples(model), keep=1.0, batch_size=16)
    assert report.layers[0].change == 0.0


def test_the_model_stays_when_it_fails() -> None:
    model = prepared(mlp(8))

    def loss(output, targets):
        raise RuntimeError("out of order")

    with unchanged(model), pytest.raises(RuntimeError, match="out of order"):
        dropout_stability(model, loss, samples(model))


def test_refit_is_the_least_squares_solution() -> None:
    """The residual of the reader's results is orthogonal to the kept units, and its mean is zero."""
    torch.manual_seed(0)
    model = mlp(16).double()
    x = samples(model, 60)[0].double()
    bench = Bench(model, F.mse_loss, Samples((x, torch.zeros(60, 4, dtype=torch.float64)), 13))
    width = find_widths(model, x)[0]
    kept = torch.tensor([0, 2, 3, 7, 11, 12])
    Moments(bench, bench, width).refit(bench.model, kept, ridge=1e-14)
    units = torch.relu(model[0](x)).detach()[:, kept]
    residual = (bench.model(x) - model(x)).detach()
    assert residual.abs().max() > 0.01
    assert (residual.T @ units).abs().max() < 1e-9 * float(units.norm() * residual.norm())
    assert residual.mean(0).abs().max() < 1e-12
    gone = [unit for unit in range(16) if unit not in kept.tolist()]
    assert not bool(bench.model[2].weight[:, gone].any())
    best = torch.linalg.lstsq(torch.cat([units, torch.ones(60, 1)], 1), model(x).detach()).solution
    assert torch.allclose(bench.model[2].weight[:, kept].T, best[:-1], rtol=1e-6)
    assert torch.allclose(bench.model[2].bias, best[-1], rtol=1e-6)


def test_refit_without_a_bias_goes_through_zero() -> None:
    torch.manual_seed(0)
    model = mlp(16, bias=False).double()
    x = samples(model, 60)[0].double()
    bench = Bench(model, F.mse_loss, Samples((x, torch.zeros(60, 4, dtype=torch.float64)), 13))
    kept = torch.arange(0, 16, 3)
    Moments(bench, bench, find_widths(model, x)[0]).refit(bench.model, kept, ridge=1e-14)
    units = torch.relu(model[0](x)).detach()[:, kept]
    best = torch.linalg.lstsq(units, model(x).detach()).solution
    assert torch.allclose(bench.model[2].weight[:, kept].T, best, rtol=1e-6)


def test_refit_of_convolutions_is_no_worse_than_rescaling() -> None:
    model = shaken(Conv(), 1)
    data = samples(model)
    x = data[0]
    for width in find_widths(model, x):
        dense = copy.deepcopy(model).eval()
        errors = {}
        for refit in (False, True):
            bench = Bench(model, F.cross_entropy, Samples(data, 9))
            kept = torch.arange(width.units // 2)
            if refit:
                Moments(bench, bench, width).refit(bench.model, kept)
            else:
                rescale(bench.model, width, kept)
            shown = {}
            for key, net in (("dense", dense), ("work", bench.model)):
                reader = net.get_submodule(width.consumers[0].module)
                handle = reader.register_forward_hook(
                    lambda _m, _a, out, key=key, shown=shown: shown.update({key: out.detach()})
                )
                net(x)
                handle.remove()
            errors[refit] = float((shown["dense"] - shown["work"]).square().mean())
        assert errors[True] < errors[False]


def test_a_layer_of_copies_loses_nothing() -> None:
    """Where all units are alike, any half of them does: rescaled and refitted."""
    model = mlp(12)
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[:1].expand(12, -1))
        model[0].bias.copy_(model[0].bias[:1].expand(12))
        model[2].weight.copy_(model[2].weight[:, :1].expand(-1, 12))
    for refit in (False, True):
        report = dropout_stability(model, F.cross_entropy, samples(model), keep=0.25, refit=refit)
        assert report.together.change < 1e-5


def test_all_at_once_is_front_to_back() -> None:
    """With a refit of everything, two layers of copies lose nothing at all, although the second sees other inputs."""
    torch.manual_seed(1)
    model = mlp(10, 8)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            half = layer.weight.shape[0] // 2
            layer.weight[half:], layer.bias[half:] = layer.weight[:half].clone(), layer.bias[:half].clone()
    report = dropout_stability(model, F.cross_entropy, samples(model, 200), keep=0.9, refit=True, trials=3)
    assert all(row.change < 1e-3 for row in (*report.layers, report.together))
    assert report.together.name == "all at once"
    assert report.together.units == 8


def test_heads_and_hidden_neurons_of_a_transformer() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24
    )
    model = transformers.BertForSequenceClassification(config)
    batches = [{"input_ids": torch.randint(30, (6, 5)), "labels": torch.randint(2, (6,))} for _ in range(2)]
    for refit in (False, True):
        with unchanged(model):
            report = dropout_stability(model, lambda output, batch: output.loss, batches, trials=2, refit=refit)
        kinds = {row.name: (row.kind, row.units) for row in report.layers}
        assert kinds["bert.encoder.layer.0.attention.self"] == ("heads", 4)
        assert kinds["bert.encoder.layer.1.intermediate.dense"] == ("channels", 24)
        assert math.isfinite(report.together.change)
        assert report.together.change > 0
        assert "bert.encoder.layer.0.output.dense" in report.skipped
    with torch.no_grad():  # heads by hand: two of four, twice their weight
        dense = model.eval().bert.encoder.layer[0].attention.output.dense
        width = find_widths(model, batches[0]).named("bert.encoder.layer.0.attention.self")
        assert width.consumers[0].channels.tolist() == [list(range(4 * head, 4 * head + 4)) for head in range(4)]
        report = dropout_stability(
            model, lambda output, batch: output.loss, batches, layers=["bert.encoder.layer.0.attention.self"], trials=1
        )
        kept = choose_units(width, 0.5, torch.Generator().manual_seed(zlib.crc32(f"0 {width.name}".encode())))
        whole = dense.weight.clone()
        scale = torch.zeros(4)
        scale[kept] = 2
        dense.weight *= scale.repeat_interleave(4)
        by_hand = sum(float(model(**batch).loss) for batch in batches) / 2
        dense.weight.copy_(whole)
    assert report.layers[0].losses[0] == pytest.approx(by_hand, rel=1e-6)


def test_what_cannot_be_treated_is_named() -> None:
    model = Residual()
    data = samples(model)
    report = dropout_stability(model, F.cross_entropy, data)
    assert [row.name for row in report.layers] == ["up"]
    assert "residual stream" in report.skipped["enter"]
    assert "its outputs must stay" in report.skipped["leave"]
    assert "not treated: enter: a residual stream" in str(report)
    with pytest.raises(ValueError, match="enter cannot be treated: a residual stream"):
        dropout_stability(model, F.cross_entropy, data, layers=["enter"])


def test_experts_and_response_norms_are_named() -> None:
    transformers = pytest.importorskip("transformers")
    from expert_models import VOCABULARY, mixtral, qwen2_moe

    batch = {"input_ids": torch.randint(VOCABULARY, (4, 6))}

    def loss(output, batch):
        return F.cross_entropy(output.logits.flatten(0, 1), batch["input_ids"].flatten())

    report = dropout_stability(qwen2_moe(), loss, batch, refit=True)
    names = ["model.layers.0.self_attn", "model.layers.0.mlp.shared_expert.gate_proj"]
    assert [row.name for row in report.layers] == names
    assert "parameters that are stacked" in report.skipped["model.layers.0.mlp.experts"]
    with pytest.raises(ValueError, match=r"mlp\.experts cannot be treated: the experts' neurons"):
        dropout_stability(mixtral(), loss, batch, layers=["model.layers.0.mlp.experts"])
    config = transformers.ConvNextV2Config(hidden_sizes=[8], depths=[1], num_stages=1, image_size=16, num_labels=4)
    model = transformers.ConvNextV2ForImageClassification(config)
    data = torch.randn(3, 3, 16, 16), torch.tensor([0, 1, 2])
    with pytest.raises(UnsupportedModelError, match=r"ConvNextV2.*grn divides each unit by a mean over all of them"):
        dropout_stability(model, lambda output, targets: F.cross_entropy(output.logits, targets), data)


def test_models_without_units_are_refused_by_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(5, 4)

        def forward(self, x):
            return self.body(x)

    with pytest.raises(UnsupportedModelError, match=r"Tied: no layer has units .*body.*must stay"):
        dropout_stability(Tied(), F.cross_entropy, samples(mlp(3)))
    with pytest.raises(UnsupportedModelError, match=r"RuntimeError|shape"):
        dropout_stability(mlp(3), F.cross_entropy, (torch.zeros(3, 6), torch.zeros(3).long()))


def test_grouped_convolutions_keep_their_groups_alike() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (5, 1)), nn.Conv1d(5, 8, 1), nn.ReLU(), nn.Conv1d(8, 4, 1, groups=2), nn.Flatten()
    )
    width = find_widths(model, samples(model)[0])[0]
    kept = choose_units(width, 0.5, torch.Generator().manual_seed(0))
    assert torch.isin(width.balance, kept).sum(1).tolist() == [2, 2]
    for refit in (False, True):
        assert dropout_stability(model, F.cross_entropy, samples(model), refit=refit).layers[0].kept == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"keep": 0}, r"keep: expected a share in \(0, 1\], got 0"),
        ({"keep": 1.5}, "keep: expected"),
        ({"trials": 0}, "trials: expected an integer >= 1, got 0"),
        ({"trials": True}, "trials: expected"),
        ({"seed": -1}, "seed: expected"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"layers": "0"}, "layers: expected a sequence of names"),
        ({"layers": []}, "layers: expected at least one name"),
        ({"layers": ["no"]}, "no: no width of this name"),
        ({"data": (torch.zeros(3, 5), torch.zeros(4).long())}, "data: expected inputs and targets of one length"),
        ({"data": []}, "data: expected at least one batch"),
    ],
)
def test_arguments_out_of_range(arguments, message) -> None:
    model = mlp(6)
    given = {"data": samples(model), **arguments}
    with unchanged(model), pytest.raises(ValueError, match=message):
        dropout_stability(model, F.cross_entropy, **given)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"data": torch.zeros(3, 5)}, "data: expected"),
        ({"data": [torch.zeros(3, 5)]}, "data: expected pairs"),
        ({"loss": 3}, "loss: expected a function"),
        ({"loss": lambda output, targets: output}, r"loss: expected a tensor of one element for a batch, got shape"),
        ({"loss": lambda output, targets: 1.0}, r"loss: expected a tensor of one element for a batch, got float"),
        ({"model": 3}, "model: expected a torch.nn.Module"),
    ],
)
def test_arguments_of_the_wrong_kind(arguments, message) -> None:
    model = mlp(6)
    given = {"model": model, "loss": F.cross_entropy, "data": samples(model), **arguments}
    with pytest.raises(TypeError, match=message):
        dropout_stability(**given)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    model = mlp(6)
    with torch.no_grad():
        model[0].bias[0] = math.nan
    with pytest.raises(ValueError, match="model: expected a finite loss on data, got nan"):
        dropout_stability(model, F.cross_entropy, samples(model))


def test_data_in_every_form_and_wrappers_give_the_same() -> None:
    model = mlp(9)
    x, y = samples(model, 21)
    batches = [(x[start : start + 5], y[start : start + 5]) for start in range(0, 21, 5)]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=5)
    whole = dropout_stability(model, F.cross_entropy, (x, y), batch_size=5)
    losses = pytest.approx(whole.together.losses, rel=1e-6)  # memory may be aligned otherwise
    for data in (batches, iter(batches), lambda: iter(batches), loader):
        with unchanged(model):
            assert dropout_stability(model, F.cross_entropy, data).together.losses == losses
    by_name = dropout_stability(model, lambda output, batch: F.cross_entropy(output, y), {"input": x})
    assert by_name.together.losses == losses
    named = dropout_stability(model, F.cross_entropy, ({"input": x}, y), batch_size=5)
    assert named.together.losses == losses
    pair = (x, y)
    assert dropout_stability(nn.DataParallel(model), F.cross_entropy, pair, batch_size=5).together.losses == losses
    with torch.inference_mode():
        assert dropout_stability(model, F.cross_entropy, pair, batch_size=5).together.losses == losses


def test_the_report_reads_well() -> None:
    model = mlp(9, 7)
    report = dropout_stability(model, F.cross_entropy, samples(model), layers=["2"], trials=3)
    plain = json.loads(json.dumps(report.to_plain()))
    assert [row["name"] for row in plain["layers"]] == ["2"]
    assert plain["together"]["losses"] == plain["layers"][0]["losses"]
    row = report.layers[0]
    assert row.change == pytest.approx(sum(abs(change) for change in row.changes) / 3)
    assert row.rate == pytest.approx(math.sqrt(math.log(7) / 7))
    assert "50 % of the units kept, their outer weights rescaled" in str(report)
    again = dropout_stability(model, F.cross_entropy, samples(model), trials=3)
    assert again.layers[1].losses == row.losses  # a layer's sets do not depend on the others
    assert sa.diagnostics.dropout_stability is dropout_stability
