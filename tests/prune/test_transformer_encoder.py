"""torch's own Transformers: its fast path is off in every run of the library, and the caller's again afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_accel as sa
from sparse_accel._modes import layer_by_layer
from sparse_accel.report import compact as comparison

GENERATOR = torch.Generator().manual_seed(3)
TOKENS = torch.randn(4, 6, 8, generator=GENERATOR)
PADDED = torch.arange(6) >= torch.tensor([6, 4, 5, 2])[:, None]


def _randomized(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                0.4 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return model.eval()


class Encoder(nn.Module):
    def __init__(self, nested: bool = True, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, padded: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=padded))

    def first(self) -> Any:
        return self.encoder.layers[0]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, padded: Tensor | None = None) -> Tensor:
        return self.head(self.layer(x, src_key_padding_mask=padded))

    def first(self) -> Any:
        return self.layer


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Transformer(8, 2, 2, 1, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, padded: Tensor | None = None) -> Tensor:
        return self.head(self.both(x, x[:, :3], src_key_padding_mask=padded, memory_key_padding_mask=padded))

    def first(self) -> Any:
        return self.both.encoder.layers[0]


MODELS = {
    "encoder": Encoder,
    "not_nested": lambda: Encoder(nested=False),
    "gelu_norm_first": lambda: Encoder(nested=False, activation="gelu", norm_first=True),
    "layer": Layer,
    "encoder_decoder": Both,
}
EXAMPLES = {"padded": (TOKENS, PADDED), "whole": (TOKENS,)}


@pytest.fixture(autouse=True)
def fast_path_stays_as_it_was() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of prototype nested tensors, in the caller's own runs
        yield
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("name", MODELS)
def test_compact_ispasp_and_curvature_iht(name: str, example: str) -> None:
    model, inputs = _randomized(MODELS[name]()), EXAMPLES[example]
    layer = model.first()
    layer.linear2.weight.data[:, ::4] = 0
    dense = model(*inputs)
    result = sa.compact(model, inputs)
    assert result.model.first().linear1.out_features == 12
    kept = ~inputs[1] if len(inputs) > 1 else torch.ones(4, 6, dtype=torch.bool)
    kept = kept if dense.shape[1] == 6 else torch.ones(4, 3, dtype=torch.bool)
    torch.testing.assert_close(result.model(*inputs)[kept], dense[kept], rtol=1e-4, atol=1e-4)  # at full speed

    names = ["x", "padded"][: len(inputs)]
    batches = [dict(zip(names, inputs, strict=True))] * 2
    pruned = sa.prune.ISpaSP(model, batches[0], keep=0.5, mask=None).run(batches)
    assert pruned.model.first().linear1.out_features == 8
    assert pruned.model(*inputs).isfinite().all()

    sparse = sa.prune.CurvatureIHT(model, 0.5).run(batches)
    assert float((sparse.model.first().linear1.weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert sparse.model(*inputs).isfinite().all()


def test_no_nested_tensor_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "latencies_ms", lambda *_: [1.0, 1.0])  # measured as fast as the caller's runs are
    model, seen = _randomized(Encoder()), []

    def watch(_module: nn.Module, args: Any, output: Any) -> None:
        seen.extend(tensor.is_nested for tensor in (*args, output) if isinstance(tensor, Tensor))

    model.encoder.register_forward_hook(watch)
    for module in model.encoder.layers:
        module.register_forward_hook(watch)
    assert not model.encoder.layers[0].training
    sa.prune.ISpaSP(model, (TOKENS, PADDED), mask=None).run([(TOKENS, PADDED)])
    sa.prune.CurvatureIHT(model, 0.5, refine=1).run([(TOKENS, PADDED)])
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("budget", [{"flops": 0.8}, {"params": 0.8}, {"latency_ms": 1e6}])
def test_budgets(budget: dict[str, float]) -> None:
    model = _randomized(Encoder())
    result = sa.prune.ISpaSP(model, (TOKENS, PADDED), budget=budget, mask=None).run([(TOKENS, PADDED)])
    assert result.model(TOKENS, PADDED).isfinite().all()


def test_the_context_holds_until_the_last_thread_has_left() -> None:
    entered, leave = Event(), Event()

    def stay() -> None:
        with layer_by_layer():
            entered.set()
            leave.wait(10)

    thread = Thread(target=stay)
    with layer_by_layer():
        thread.start()
        assert entered.wait(10)
    assert not torch.backends.mha.get_fastpath_enabled()
    leave.set()
    thread.join()
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_callers_choice_comes_back_also_after_an_error() -> None:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        sa.compact(_randomized(Encoder()), (TOKENS, PADDED))
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    with pytest.raises(sa.UnsupportedModelError):
        sa.compact(_randomized(Encoder()), (TOKENS[..., :3], PADDED))
    assert torch.backends.mha.get_fastpath_enabled()
