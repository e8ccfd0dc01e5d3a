"""Every usual architecture: half of every width goes; forward, backward, save, load, equal outputs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from compact_checks import assert_same_outputs, assert_unchanged, snapshot
from compact_models import randomize
from prune_models import NETS, Attention, hugging_face
from torch import Tensor, nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.channels.call import run_model, tree_tensors
from sparse_accel.prune import RemovalResult, Widths, find_widths, remove_units


def halve(model: nn.Module, example: Any, directory: Path) -> tuple[RemovalResult, Widths]:
    """Remove every second unit of every width; check all that must hold."""
    before = snapshot(model)
    widths = find_widths(model, example)
    kept = {width.name: torch.arange(1, width.units, 2) for width in widths if width.balance is None}
    result = remove_units(model, example, kept)
    assert_unchanged(model, before)
    for name, module in result.model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features), name
    trained = copy.deepcopy(result.model).train()
    loss = sum(t.float().square().mean() for t in tree_tensors(run_model(trained, example)) if t.requires_grad)
    loss.backward()
    for width in widths:
        for consumer in width.consumers:
            gradient = dict(trained.named_parameters())[consumer.weight].grad
            assert gradient is not None
            assert bool(gradient.isfinite().all())
            assert bool(gradient.any())
    sa.save(result, directory)
    loaded = sa.load(directory, model)
    assert_same_outputs(result.model, loaded, example, tolerance=0)
    with torch.no_grad():  # the dense model without the units
        parameters = dict(model.named_parameters())
        for width in widths:
            gone = [unit for unit in range(width.units) if unit not in kept[width.name]]
            for consumer in width.consumers:
                weight = parameters[consumer.weight]
                (weight.t() if consumer.transposed else weight)[:, consumer.channels[gone].reshape(-1)] = 0
    assert_same_outputs(model, result.model, example)
    return result, widths


@pytest.mark.parametrize("name", NETS)
def test_usual_nets(name: str, tmp_path: Path) -> None:
    net = NETS[name]
    model = randomize(net.build())
    model.train()
    result, widths = halve(model.eval(), net.example(), tmp_path)
    inner = [width for width in widths if not width.coupled]
    assert sum(width.kind == "channels" for width in inner) == net.channels
    assert sum(width.kind == "heads" for width in inner) == net.heads
    assert all(width.refittable for width in inner)
    assert result.max_abs_diff < 1e-4


EXPECTED = {  # heads, their size, neurons, layers
    "bert": (4, 8, 48, 2),
    "vit": (4, 8, 48, 2),
    "deit": (4, 8, 48, 2),
    "llama": (4, 16, 48, 2),  # a unit is a key-value head with the two query heads that it serves
    "qwen3": (4, 16, 48, 2),
    "gpt2": (4, 8, 128, 2),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", EXPECTED)
def test_transformers(name: str, attention: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model, example = hugging_face(name, attention)
    randomize(model.eval())
    count, size, neurons, layers = EXPECTED[name]
    result, widths = halve(model, example, tmp_path)
    heads = [width for width in widths if width.kind == "heads"]
    hidden = [width for width in widths if width.kind == "channels"]
    assert [(w.units, w.unit_size, w.coupled) for w in heads] == [(count, size, False)] * layers
    assert [(w.units, w.unit_size, w.coupled) for w in hidden] == [(neurons, 1, False)] * layers
    assert all(width.refittable for width in widths)
    if "input_ids" in example:  # another batch and length
        other = {"input_ids": torch.arange(15).reshape(3, 5), "attention_mask": torch.ones(3, 5, dtype=torch.long)}
        assert_same_outputs(model, result.model, other)


def test_convnext_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model, example = hugging_face("convnext", "eager")
    widths = halve(randomize(model.eval()), example, tmp_path)[1]
    assert [width.units for width in widths] == [32, 48, 64, 80]


def test_position_biases_tie_the_heads_of_all_layers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model, example = hugging_face("t5", "eager")
    result, widths = halve(randomize(model.eval()), example, tmp_path)
    heads = [width for width in widths if width.kind == "heads" and len(width.consumers) > 1]
    assert [len(width.producers) for width in heads] == [7, 7]
    assert all(width.coupled for width in heads)
    assert result.model.encoder.block[1].layer[0].SelfAttention.n_heads == 2


def test_attributes_of_the_layers_follow() -> None:
    pytest.importorskip("transformers")
    bert, example = hugging_face("bert", "sdpa")
    kept = {"encoder.layer.0.attention.self": [0, 1, 3], "encoder.layer.1.intermediate.dense": range(10)}
    small = remove_units(bert.eval(), example, kept).model
    first, second = (layer.attention.self for layer in small.encoder.layer)
    assert (first.num_attention_heads, first.all_head_size, first.attention_head_size) == (3, 24, 8)
    assert (second.num_attention_heads, second.all_head_size) == (4, 32)
    assert small.encoder.layer[1].output.dense.in_features == 10
    llama, example = hugging_face("llama", "sdpa")
    kept = {"model.layers.1.self_attn": [2], "model.layers.0.mlp.gate_proj": [1, 5, 6]}
    small = remove_units(llama.eval(), example, kept).model
    attention = small.model.layers[1].self_attn
    assert (attention.q_proj.out_features, attention.k_proj.out_features, attention.num_key_value_groups) == (16, 8, 2)
    assert small.model.layers[0].mlp.intermediate_size == 3
    assert small.model.layers[1].mlp.intermediate_size == 48
    with torch.no_grad():  # with a cache
        generated = small.generate(example["input_ids"][:1], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert generated.shape == (1, 11)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_configurations_follow_where_all_layers_agree(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model, example = hugging_face(name, "sdpa")
    model.eval()
    widths = find_widths(model, example)
    kept = {w.name: range(w.units // 2) for w in widths if name == "llama" or w.kind == "channels"}
    result = remove_units(model, example, kept)
    assert result.model.config.intermediate_size == 24
    assert model.config.intermediate_size == 48
    if name == "llama":
        assert (result.model.config.num_attention_heads, result.model.config.num_key_value_heads) == (4, 2)
    result.model.save_pretrained(tmp_path / "hf")
    again = type(model).from_pretrained(tmp_path / "hf")
    assert_same_outputs(result.model, again, example, tolerance=0)
    sa.save(result, tmp_path / "sa")
    loaded = sa.load(tmp_path / "sa", model)
    for key in ("intermediate_size", "num_attention_heads", "num_key_value_heads", "hidden_size"):
        assert getattr(loaded.config, key, None) == getattr(result.model.config, key, None)
    one = next(width.name for width in widths if width.kind == "channels")
    assert remove_units(model, example, {one: range(5)}).model.config.intermediate_size == 48


def test_heads_that_the_model_shows_stay() -> None:
    pytest.importorskip("transformers")
    model, example = hugging_face("bert", "eager")
    widths = find_widths(model.eval(), {**example, "output_attentions": True})
    assert {width.kind for width in widths} == {"channels"}
    assert "encoder.layer.0.attention.self.query" in widths.refused


def test_multihead_attention_is_refused_by_name() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    widths = find_widths(layer, torch.randn(2, 3, 8))
    assert [(width.name, width.units) for width in widths] == [("linear1", 12)]
    assert widths.refused["self_attn"].startswith("self_attn (MultiheadAttention): multi_head_attention_forward")
    with pytest.raises(ValueError, match=r"self_attn: no width of this name: self_attn \(MultiheadAttention\)"):
        remove_units(layer, torch.randn(2, 3, 8), {"self_attn": [0]})


class HeadSizeOfTheWidth(Attention):
    """Takes the size of a head from the width and the number of heads: without half of the heads it would grow."""

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, self.num_heads, width // self.num_heads)
        q, k, v = (y.view(shape).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=2))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_attributes_that_are_computed_with_stay() -> None:
    model = randomize(HeadSizeOfTheWidth("none"))
    widths = find_widths(model, torch.randn(2, 3, 16))
    assert not widths
    assert any("computes with its attribute num_heads" in note for note in widths.notes)
