"""Forty small models, everything that the library does with a model: what is left says so, and nothing is wrong."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo_own import OWN
from zoo_transformers import TRANSFORMERS

import sparse_accel as sa
from sparse_accel.channels.call import run_model
from sparse_accel.channels.containers import output_tensors
from sparse_accel.report import compact as comparison

ZOO = {**OWN, **TRANSFORMERS}
# Models none of whose widths can go, with the words that say why.
NO_WIDTHS = {
    "recurrent": "read, state, out",
}
# Models whose widths are read by a layer that runs several times with the same weights.
LOOPED = {"albert", "looped"}


def outputs(model: nn.Module, batch: Any) -> list[Tensor]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            return [t.clone() for t in output_tensors(run_model(model.eval(), copy.deepcopy(batch)))]
    finally:
        for module, training in modes:
            module.training = training


def weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.dim() >= 2)


def equal(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def assert_computes(model: nn.Module, dense: nn.Module, batches: list[Any]) -> None:
    for batch in batches:
        came, expected = outputs(model, batch), outputs(dense, batch)
        assert [t.shape for t in came] == [t.shape for t in expected]
        assert all(bool(t.isfinite().all()) for t in came if t.is_floating_point())


def assert_reloads(result: Any, fresh: nn.Module, batches: list[Any], folder: Path) -> None:
    loaded = sa.load(sa.save(result, folder), fresh)
    assert equal(loaded, result.model)
    for batch in batches:
        for old, new in zip(outputs(result.model, batch), outputs(loaded, batch), strict=True):
            assert torch.equal(old, new)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies are not what this is about: one round."""
    monkeypatch.setattr(comparison, "latencies_ms", partial(comparison.latencies_ms, budget_s=0.0))


@pytest.fixture(params=sorted(ZOO))
def made(request: pytest.FixtureRequest) -> Iterator[tuple[str, nn.Module, list[Any]]]:
    if request.param in TRANSFORMERS:
        pytest.importorskip("transformers", reason="the test group is not installed")
    model, batches = ZOO[request.param]()
    model.eval()
    before = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*of the weights.*")  # what is left is asserted on
        yield request.param, model, batches
    assert equal(model, before)
    assert not model.training


def test_the_zoo_is_large() -> None:
    assert len(ZOO) >= 40


def test_compact(made: tuple[str, nn.Module, list[Any]], tmp_path: Path) -> None:
    """Half of one width's units are read by nobody: they go, and no output of any batch changes."""
    name, model, batches = made
    widths = sa.prune.find_widths(model, batches[0])
    planted = copy.deepcopy(model)
    silent = 0
    for width in widths:
        if width.kind == "experts":  # of every expert some others
            stack = width.stack
            dim, reader = stack.axes[stack.reader][0], planted.get_parameter(stack.reader)
            for expert, weight in enumerate(reader.data):
                weight.index_fill_(dim - 1, torch.arange(width.units // 2) + expert, 0)
        elif width.norms:  # what is read by nobody still counts in a mean
            for parameter in planted.get_submodule(width.name).parameters():
                parameter.data[: width.units // 2] = 0
        silent += width.kind == "experts" or bool(width.norms)
    for width in list(widths)[:1]:
        for consumer in width.consumers:
            module = planted.get_submodule(consumer.module)
            index = torch.cat([torch.as_tensor(consumer.channels[unit]) for unit in range(width.units // 2)])
            dim = 0 if type(module).__name__ == "Conv1D" or isinstance(module, nn.modules.conv._ConvTransposeNd) else 1
            if getattr(module, "groups", 1) == 1:
                module.weight.data.index_fill_(dim, index, 0)
    result = sa.compact(planted, batches[0])
    halved = {w.name: w.units for w in sa.prune.find_widths(result.model, batches[0]) if w.kind == "experts" or w.norms}
    assert len(halved) == silent
    assert all(2 * halved[w.name] == w.units for w in widths if w.name in halved)
    for batch in batches:
        for old, new in zip(outputs(planted, batch), outputs(result.model, batch), strict=True):
            torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-5)
    assert_reloads(result, ZOO[name]()[0].eval(), batches, tmp_path)


def test_structured(made: tuple[str, nn.Module, list[Any]], tmp_path: Path) -> None:
    name, model, batches = made
    pruner = sa.prune.ISpaSP(model, batches[0], 0.5)
    if name in NO_WIDTHS:
        with pytest.raises(sa.UnsupportedModelError, match=NO_WIDTHS[name]):
            pruner.run(batches)
        return
    result = pruner.run(batches)
    smaller = sum(p.numel() for p in result.model.parameters()) < sum(p.numel() for p in model.parameters())
    assert smaller != (name in LOOPED)
    assert_computes(result.model, model, batches)
    assert_reloads(result, ZOO[name]()[0].eval(), batches, tmp_path)
    # Every width of the model was halved, or a note names it.
    told = "\n".join(result.report.notes)
    changed = {change.name for change in result.report.widths}
    for width in sa.prune.find_widths(model, batches[0]):
        assert width.name in changed or width.coupled or width.name in told, width.name


def test_unstructured(made: tuple[str, nn.Module, list[Any]], tmp_path: Path) -> None:
    name, model, batches = made
    pruner = sa.prune.CurvatureIHT(model, 0.5)
    result = pruner.run(batches)
    assert_computes(result.model, model, batches)
    assert_reloads(result, ZOO[name]()[0].eval(), batches, tmp_path)
    told = result.report
    assert abs(told.sparsity - 0.5) < 0.02
    # Every weight was pruned or is named with its share; the whole model's sparsity is told too.
    total = sum(p.numel() for _, p in weights(model))
    zeros = sum(int((p == 0).sum()) for _, p in weights(result.model))
    assert told.weights == total
    assert abs(told.left_share + sum(layer.numel for layer in told.layers) / total - 1) < 1e-6
    assert abs(told.model_sparsity - sum(layer.numel - layer.kept for layer in told.layers) / total) < 1e-9
    assert zeros / total >= told.model_sparsity - 1e-9
    assert set(told.shares) == set(told.left)
    again = pruner.run(batches[::-1])
    assert equal(again.model, result.model)
