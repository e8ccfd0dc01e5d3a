"""Which positions count: several masks, batch or length first, and readings that shapes do not tell apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_accel.calibration.padding import Padding
from sparse_accel.prune import CurvatureIHT, ISpaSP


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def mask_of(batch: int, length: int, seed: int = 0) -> Tensor:
    """At least two positions of each row, and not all of all."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(2, length, (batch, 1), generator=generator)
    return (torch.arange(length) < counts).long()


class Attention(nn.Module):
    """``[batch, length, 8]``, or ``[length, batch, 8]``; keys may be those of another sequence."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.batch_first = batch_first

    def forward(self, x: Tensor, mask: Tensor, other: Tensor | None = None) -> Tensor:
        other = x if other is None else other
        q, k, v = self.query(x), self.key(other), self.value(other)
        if not self.batch_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        weights = (q @ k.mT).masked_fill(mask[:, None] == 0, -1e9).softmax(-1)
        out = weights @ v
        return self.out(out if self.batch_first else out.transpose(0, 1))


class Net(nn.Module):
    """One sequence with a mask."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.attention = Attention(batch_first)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        x = x + self.attention(x, attention_mask)
        return x + self.down(F.relu(self.up(x)))


class Pair(nn.Module):
    """Encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.cross = Attention(), Attention(), Attention()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(
        self, x: Tensor, y: Tensor, attention_mask: Tensor, decoder_attention_mask: Tensor | None = None
    ) -> Tensor:
        if decoder_attention_mask is None:
            decoder_attention_mask = torch.ones(y.shape[:2], device=y.device)
        memory = x + self.first(x, attention_mask)
        y = y + self.second(y, decoder_attention_mask)
        y = y + self.cross(y, attention_mask, memory)
        return y + self.down(F.relu(self.up(y)))


def pair(batch: int, source: int, target: int, both: bool = True) -> dict[str, Tensor]:
    out = {
        "x": torch.randn(batch, source, 8), "y": torch.randn(batch, target, 8),
        "attention_mask": mask_of(batch, source),
    }  # fmt: skip
    if both:
        out["decoder_attention_mask"] = mask_of(batch, target, seed=1)
    return out


def columns(net: nn.Module, data: list[Any], **options: Any) -> dict[str, int]:
    return {layer.name: layer.columns for layer in CurvatureIHT(net, 0.5, **options).run(data).report.layers}


SOURCE = ("first.query", "first.key", "first.value", "first.out", "cross.key", "cross.value")
TARGET = ("second.query", "second.key", "second.value", "second.out", "cross.query", "cross.out", "up", "down")


@pytest.mark.parametrize(
    "lengths", [(5, 7), (6, 6), (4, 6)], ids=["all differ", "sequences alike", "batch like source"]
)
def test_each_of_two_masks_counts_where_it_belongs(lengths: tuple[int, int]) -> None:
    batch = pair(4, *lengths)
    found = columns(Pair(), [batch])
    assert {found[name] for name in SOURCE} == {int(batch["attention_mask"].sum())}
    assert {found[name] for name in TARGET} == {int(batch["decoder_attention_mask"].sum())}


def test_where_everything_is_of_one_size() -> None:
    batch = pair(6, 6, 6)
    found = columns(Pair(), [batch])
    assert {found[name] for name in SOURCE} == {int(batch["attention_mask"].sum())}
    assert {found[name] for name in TARGET} == {int(batch["decoder_attention_mask"].sum())}


def test_a_decoder_without_a_mask_counts_whole() -> None:
    batch = pair(4, 6, 6, both=False)
    found = columns(Pair(), [batch])
    assert {found[name] for name in SOURCE} == {int(batch["attention_mask"].sum())}
    assert {found[name] for name in TARGET} == {24}


def test_masks_by_pattern_and_by_list() -> None:
    batch = pair(4, 6, 6)
    a, b = int(batch["attention_mask"].sum()), int(batch["decoder_attention_mask"].sum())
    masks = {"*": "decoder_attention_mask", "first": "attention_mask", "cross.[kv]*": "attention_mask", "up": None}
    found = columns(Pair(), [batch], padding=masks)
    assert {found[name] for name in SOURCE} == {a}
    assert {found[name] for name in TARGET if name != "up"} == {b}
    assert found["up"] == 24
    assert columns(Pair(), [batch], padding=["attention_mask"])["up"] == 24
    assert set(columns(Pair(), [batch], padding=None).values()) == {24}


class Unbound(Pair):
    """Crops its masks: no run of a shortened batch tells whose they are."""

    def forward(
        self, x: Tensor, y: Tensor, attention_mask: Tensor, decoder_attention_mask: Tensor | None = None
    ) -> Tensor:
        return super().forward(x, y, F.pad(attention_mask, (0, x.shape[1] - attention_mask.shape[1])))


@pytest.mark.parametrize("both", [True, False])
def test_what_could_be_either_is_refused(both: bool) -> None:
    batch = pair(4, 6, 6, both)
    with pytest.raises(
        ValueError, match=r"padding: .*: its positions may be those of 'attention_mask'.*: give padding="
    ):
        CurvatureIHT(Unbound(), 0.5).run([batch])
    with pytest.raises(ValueError, match=r"mask: .*: its positions may be those of 'attention_mask'.*: give mask="):
        ISpaSP(Unbound().eval(), batch).run([batch])
    found = columns(Unbound(), [batch], padding={"first": "attention_mask"})
    assert found["first.query"] == int(batch["attention_mask"].sum())
    assert found["up"] == 24


def test_lengths_that_differ_once_tell() -> None:
    data = [pair(4, 6, 6, both=False), pair(4, 5, 6, both=False)]
    found = columns(Unbound(), data, padding={"first": "attention_mask"})
    assert found["first.query"] == sum(int(batch["attention_mask"].sum()) for batch in data)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("sizes", [(4, 7), (6, 6)], ids=["oblong", "square"])
def test_batch_or_length_first(batch_first: bool, sizes: tuple[int, int]) -> None:
    net, mask, x = Net(batch_first), mask_of(*sizes), torch.randn(*sizes, 8)
    noise = torch.where(mask[..., None] == 0, torch.full_like(x, 50.0), x)

    def data(values: Tensor) -> list[dict[str, Tensor]]:
        return [{"x": values if batch_first else values.transpose(0, 1).contiguous(), "attention_mask": mask}]

    assert set(columns(net, data(x)).values()) == {int(mask.sum())}
    one, two = (CurvatureIHT(net, 0.5).run(data(values)) for values in (x, noise))
    for layer in ("attention.query", "up", "down"):  # padding has no say
        assert one.report[layer].error == pytest.approx(two.report[layer].error, rel=1e-4)
    left, right = (ISpaSP(net.eval(), data(x)[0], refit="local").run(data(values)) for values in (x, noise))
    assert left.kept == right.kept
    torch.testing.assert_close(left.model.down.weight, right.model.down.weight, rtol=1e-4, atol=1e-5)


class Late(nn.Module):
    """Square inputs, and nothing in the model that ties them to the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.layers(x)


def test_a_square_that_nothing_tells_is_refused() -> None:
    mask = mask_of(6, 6)
    batch = {"x": torch.randn(6, 6, 8), "attention_mask": mask}
    with pytest.raises(
        ValueError, match=r"padding: layers\.0: .*'attention_mask' \(batch first\) or .*: give batch_first=True"
    ):
        CurvatureIHT(Late(), 0.5).run([batch])
    with pytest.raises(ValueError, match=r"mask: layers\.0: .*length first.*give batch_first="):
        ISpaSP(Late().eval(), batch).run([batch])
    weights = []
    for first in (True, False):
        assert set(columns(Late(), [batch], batch_first=first).values()) == {int(mask.sum())}
        kept = batch["x"].clone()
        kept[(mask if first else mask.T) == 0] = 9.0  # padding: any value will do
        result, other = (
            CurvatureIHT(net, 0.5, batch_first=first).run([{**batch, "x": x}])
            for net, x in ((seeded(Late), batch["x"]), (seeded(Late), kept))
        )
        assert torch.equal(result.model.layers[0].weight, other.model.layers[0].weight)
        weights.append(result.model.layers[0].weight)
    assert not torch.equal(*weights)
    other = {"x": torch.randn(5, 6, 8), "attention_mask": mask_of(5, 6)}  # one batch that is no square tells
    assert set(columns(Late(), [batch, other]).values()) == {int(mask.sum() + other["attention_mask"].sum())}


def seeded(make: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


class Flat(nn.Module):
    """Puts batch and length into one dimension, as mixtures do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.inner(x.reshape(-1, 8)).view_as(x)


def test_positions_in_one_dimension() -> None:
    mask = mask_of(4, 7)
    x = torch.randn(4, 7, 8)
    noise = torch.where(mask[..., None] == 0, torch.full_like(x, 50.0), x)
    one, two = ([{"x": values, "attention_mask": mask}] for values in (x, noise))
    assert set(columns(Flat(), one).values()) == {int(mask.sum())}
    results = [ISpaSP(seeded(Flat).eval(), one[0]).run(data) for data in (one, two)]
    assert torch.equal(results[0].model.inner[2].weight, results[1].model.inner[2].weight)
    sums = [ISpaSP(seeded(Flat).eval(), one[0], method="ispasp").run(data) for data in (one, two)]
    assert sums[0].kept == sums[1].kept


class Shared(nn.Module):
    """One encoder for two sequences: each call has positions of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(8, 8)
        self.own = Attention()

    def forward(self, x: Tensor, y: Tensor, attention_mask: Tensor, decoder_attention_mask: Tensor) -> Tensor:
        x, y = self.encoder(x), self.encoder(y)
        return self.own(x, attention_mask).sum(1) + self.own(y, decoder_attention_mask).sum(1)


@pytest.mark.parametrize("lengths", [(5, 7), (6, 6)])
def test_calls_of_one_module_may_have_different_masks(lengths: tuple[int, int]) -> None:
    batch = pair(4, *lengths)
    total = int(batch["attention_mask"].sum() + batch["decoder_attention_mask"].sum())
    assert set(columns(Shared(), [batch]).values()) == {total}


@pytest.mark.parametrize("value", [3, [1], {"*": 2}, {1: "mask"}])
def test_arguments_are_checked(value: Any) -> None:
    for make in (lambda: CurvatureIHT(Net(), padding=value), lambda: Padding(value)):
        with pytest.raises(TypeError, match="padding: expected a key"):
            make()
    with pytest.raises(TypeError, match="mask: expected a key"):
        ISpaSP(Net(), {}, mask=value)
    with pytest.raises(TypeError, match="batch_first: expected"):
        CurvatureIHT(Net(), batch_first="yes")


def test_a_key_that_no_batch_has_is_refused() -> None:
    batch = {"x": torch.randn(4, 7, 8), "attention_mask": mask_of(4, 7)}
    with pytest.raises(ValueError, match=r"padding: no batch has a mask .* of the key 'maks'"):
        CurvatureIHT(Net(), 0.5, padding="maks").run([batch])
    assert columns(nn.Linear(8, 4), [torch.randn(4, 8)]) == {"": 4}


@pytest.mark.parametrize("lengths", [(5, 7), (6, 6), (4, 4)])
@pytest.mark.parametrize("family", ["T5", "Bart"])
def test_encoder_decoders_of_hugging_face(family: str, lengths: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    if family == "T5":
        config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        model, cross = transformers.T5Model(config), "decoder.block.0.layer.1.EncDecAttention.k"
        inner, outer = "encoder.block.0.layer.1.DenseReluDense.wi", "decoder.block.0.layer.2.DenseReluDense.wi"
    else:
        config = transformers.BartConfig(
            vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
        )  # fmt: skip
        model, cross = transformers.BartModel(config), "decoder.layers.0.encoder_attn.k_proj"
        inner, outer = "encoder.layers.0.fc1", "decoder.layers.0.fc1"
    source, target = lengths
    batch = {
        "input_ids": torch.randint(3, 50, (4, source)), "attention_mask": mask_of(4, source),
        "decoder_input_ids": torch.randint(3, 50, (4, target)), "decoder_attention_mask": mask_of(4, target, 1),
    }  # fmt: skip
    found = columns(model.eval(), [batch])
    assert found[inner] == found[cross] == int(batch["attention_mask"].sum())
    assert found[outer] == int(batch["decoder_attention_mask"].sum())


@pytest.mark.parametrize("labels", [False, True])
def test_square_batches_of_hugging_face_decoders(labels: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, use_cache=False
    )
    model, mask = transformers.LlamaForCausalLM(config).eval(), mask_of(6, 6)
    batch = {"input_ids": torch.randint(0, 50, (6, 6)), "attention_mask": mask}
    if labels:
        batch["labels"] = batch["input_ids"]
    assert set(columns(model, [batch]).values()) == {int(mask.sum())}
