"""A pruned Hugging Face model comes back from ``from_pretrained`` to the bit, or a note says that it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compact_models import randomize
from prune_models import hugging_face
from torch import Tensor, nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.channels.call import run_model, tree_tensors
from sparse_accel.prune import ISpaSP, find_widths, remove_units

hf = pytest.importorskip("transformers")


def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    with torch.no_grad():
        return list(tree_tensors(run_model(model.eval(), example)))


def same(model: nn.Module, other: nn.Module, example: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(outputs(model, example), outputs(other, example), strict=True))


def reload(model: Any, directory: Path) -> nn.Module:
    model.save_pretrained(directory)
    return type(model).from_pretrained(directory)


def reload_notes(notes: list[str]) -> list[str]:
    return [note for note in notes if note.startswith("from_pretrained: ")]


def model_of(name: str) -> tuple[Any, dict[str, Tensor]]:
    """More models than those of the other tests: two widths per configuration, configurations in configurations."""
    torch.manual_seed(0)
    ids = (torch.arange(14) * 5 % 50).reshape(2, 7)
    if name == "bart":
        config = hf.BartConfig(
            vocab_size=50, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=20, max_position_embeddings=16,
        )  # fmt: skip
        return hf.BartModel(config), {"input_ids": ids, "decoder_input_ids": ids[:, :3]}
    if name == "clip":
        part = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        text = {**part, "vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 49}
        vision = {**part, "intermediate_size": 36, "image_size": 8, "patch_size": 4}
        clip = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        return clip, {"input_ids": ids, "pixel_values": torch.randn(2, 3, 8, 8)}
    if name == "opt":
        config = hf.OPTConfig(
            vocab_size=50, hidden_size=16, ffn_dim=40, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, word_embed_proj_dim=16,
        )  # fmt: skip
        return hf.OPTForCausalLM(config), {"input_ids": ids}
    return hugging_face(name, "sdpa")


def calibration(example: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    batch = {key: value.repeat(6, *[1] * (value.dim() - 1)) for key, value in example.items()}
    batch["input_ids"] = torch.randint(0, 49, batch["input_ids"].shape, generator=generator)
    return [batch]


def test_the_default_run_on_a_llama_comes_back(tmp_path: Path) -> None:
    model, example = model_of("llama")
    result = ISpaSP(model.eval(), example).run(calibration(example))
    assert not result.plan["created"]
    config = result.model.config
    assert (config.intermediate_size, config.num_attention_heads, config.num_key_value_heads) == (24, 4, 2)
    assert not reload_notes(result.report.notes)
    assert same(reload(result.model, tmp_path), result.model, example)


def test_biases_that_were_asked_for_come_with_their_flags(tmp_path: Path) -> None:
    model, example = model_of("llama")
    result = ISpaSP(model.eval(), example, new_bias=True).run(calibration(example))
    config = result.model.config
    assert (config.attention_bias, config.mlp_bias, model.config.attention_bias) == (True, True, False)
    layer = result.model.model.layers[0]
    assert layer.self_attn.o_proj.bias.any()
    assert not layer.self_attn.q_proj.bias.any()
    assert not reload_notes(result.report.notes)
    assert same(reload(result.model, tmp_path / "hf"), result.model, example)
    loaded = sa.load(sa.save(result, tmp_path / "sa"), model)
    assert loaded.config.mlp_bias is True
    assert same(loaded, result.model, example)
    assert same(reload(loaded, tmp_path / "again"), result.model, example)


def test_biases_without_a_flag_are_noted() -> None:
    model, example = model_of("qwen3")
    result = ISpaSP(model.eval(), example, new_bias=True).run(calibration(example))
    (note,) = reload_notes(result.report.notes)
    assert "model.layers.0.mlp.down_proj.bias, model.layers.1.mlp.down_proj.bias" in note
    assert "sparse_accel.save" in note
    assert result.model.config.attention_bias is True  # this class knows it
    plain = ISpaSP(model, example).run(calibration(example))
    assert not plain.plan["created"]
    assert not reload_notes(plain.report.notes)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("gpt2", {"n_inner": 64}),
        ("bert", {"intermediate_size": 24}),
        ("opt", {"ffn_dim": 20}),
        ("bart", {"encoder_ffn_dim": 12, "decoder_ffn_dim": 10}),
        ("clip", {"text_config.intermediate_size": 12, "vision_config.intermediate_size": 18}),
        ("t5", {"d_ff": 24}),
    ],
)
def test_neurons(name: str, expected: dict[str, int], tmp_path: Path) -> None:
    model, example = model_of(name)
    if name != "clip":  # which has a number for a parameter
        randomize(model)
    model.eval()
    widths = [width for width in find_widths(model, example) if width.kind == "channels" and not width.coupled]
    kept = {width.name: torch.arange(width.units)[1::2] for width in widths}
    result = remove_units(model, example, kept)
    assert {key: new for key, (_, new) in result.plan["attributes"][""].items()} == {
        f"config.{key}": value for key, value in expected.items()
    }
    assert not reload_notes(result.plan["notes"])
    assert same(reload(result.model, tmp_path / "hf"), result.model, example)
    loaded = sa.load(sa.save(result, tmp_path / "sa"), model)
    assert same(reload(loaded, tmp_path / "again"), result.model, example)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_heads_that_no_configuration_says_are_refused_and_noted(name: str, tmp_path: Path) -> None:
    model, example = model_of(name)
    result = ISpaSP(model.eval(), example).run(calibration(example))
    (note,) = reload_notes(result.report.notes)
    assert "no configuration says what" in note
    assert "attn" in note or "attention" in note
    with pytest.raises(RuntimeError, match="mismatch"):
        reload(result.model, tmp_path / "hf")
    assert same(sa.load(sa.save(result, tmp_path / "sa"), model), result.model, example)


def test_layers_of_different_widths_are_refused_and_noted(tmp_path: Path) -> None:
    model, example = model_of("llama")
    result = remove_units(model.eval(), example, {"model.layers.1.mlp.gate_proj": range(5)})
    assert result.model.config.intermediate_size == 48
    (note,) = reload_notes(result.plan["notes"])
    assert "model.layers.1.mlp.down_proj.weight, model.layers.1.mlp.gate_proj.weight and" in note
    with pytest.raises(RuntimeError, match="mismatch"):
        reload(result.model, tmp_path)
    heads = {f"model.layers.{i}.self_attn": range(3) for i in range(2)}  # 6 heads: 32 is not a multiple
    assert len(reload_notes(remove_units(model, example, heads).plan["notes"])) == 1


def dead_neurons(model: Any) -> None:
    """Half of the neurons of every layer, others in each."""
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            layer.mlp.down_proj.weight[:, number::2] = 0


def test_compact_lets_the_configuration_follow(tmp_path: Path) -> None:
    model, example = model_of("llama")
    dead_neurons(model.eval())
    result = sa.compact(model, example)
    assert (result.model.config.intermediate_size, model.config.intermediate_size) == (24, 48)
    assert result.model.model.layers[1].mlp.up_proj.out_features == 24
    assert not reload_notes(result.plan["notes"])
    assert same(reload(result.model, tmp_path / "hf"), result.model, example)
    assert sa.load(sa.save(result, tmp_path / "sa"), model).config.intermediate_size == 24
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, 1] = 0
    uneven = sa.compact(model, example)
    assert uneven.model.config.intermediate_size == 48
    assert len(reload_notes(uneven.plan["notes"])) == 1


def test_compact_of_gpt2(tmp_path: Path) -> None:
    model, example = model_of("gpt2")
    with torch.no_grad():
        for block in model.eval().transformer.h:
            block.mlp.c_proj.weight[:28] = 0
    result = sa.compact(model, example)
    assert (result.model.config.n_inner, result.model.transformer.h[0].mlp.c_fc.nf) == (100, 100)
    assert not result.plan["created"]
    assert same(reload(result.model, tmp_path), result.model, example)


def test_a_model_inside_another(tmp_path: Path) -> None:
    class Outside(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.inside = inside

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.inside(input_ids=input_ids).logits

    inside, example = model_of("llama")
    model, ids = Outside(inside).eval(), example["input_ids"]
    result = ISpaSP(model, ids).run(ids.repeat(4, 1))
    assert result.plan["attributes"]["inside"]["config.intermediate_size"] == [48, 24]
    assert not result.plan["created"]
    again = reload(result.model.inside, tmp_path / "hf")
    assert same(Outside(again), result.model, ids)
    assert sa.load(sa.save(result, tmp_path / "sa"), model).inside.config.intermediate_size == 24


class SmallConfig(hf.PretrainedConfig):
    model_type = "small-of-these-tests"

    def __init__(self, width: int = 4, neurons: int = 6, **rest: Any) -> None:
        super().__init__(**rest)
        self.width, self.neurons = width, neurons


class Small(hf.PreTrainedModel):
    """An MLP whose second layer has no bias."""

    config_class = SmallConfig

    def __init__(self, config: SmallConfig) -> None:
        super().__init__(config)
        self.up = nn.Linear(config.width, config.neurons)
        self.down = nn.Linear(config.neurons, config.width, bias=False)
        self.post_init()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


@pytest.fixture
def small() -> Small:
    torch.manual_seed(0)
    return Small(SmallConfig()).eval()


def test_compact_makes_no_bias_that_the_class_does_not_have(small: Small, tmp_path: Path) -> None:
    x = torch.randn(5, 4)
    with torch.no_grad():
        small.up.weight[1:3] = 0
        small.up.bias[1], small.up.bias[2] = 0.7, 0.0  # gelu: one constant, one zero
    result = sa.compact(small, x)
    assert not result.plan["created"]
    assert (result.model.up.out_features, result.model.config.neurons) == (5, 5)
    assert any(note.startswith("down: constant channels are kept: from_pretrained") for note in result.plan["notes"])
    assert same(reload(result.model, tmp_path), result.model, x)
    plain = nn.Sequential(small.up, nn.GELU(), small.down)  # not rebuilt from a configuration: the constant is folded
    folded = sa.compact(plain, x)
    assert list(folded.plan["created"]) == ["2.bias"]
    assert folded.model[0].out_features == 4


def test_numbers_of_any_name_follow(small: Small, tmp_path: Path) -> None:
    x = torch.randn(40, 4)
    result = ISpaSP(small, x[:2]).run(x)
    assert (result.model.config.neurons, small.config.neurons) == (3, 6)
    assert same(reload(result.model, tmp_path), result.model, x)


def test_a_class_that_cannot_be_rebuilt_is_noted() -> None:
    class Picky(Small):
        def __init__(self, config: SmallConfig, secret: int) -> None:
            super().__init__(config)

    x = torch.randn(40, 4)
    result = ISpaSP(Picky(SmallConfig(), 1).eval(), x[:2]).run(x)
    (note,) = reload_notes(result.report.notes)
    assert "cannot be built from its configuration" in note
    assert result.model.config.neurons == 6


def test_configurations_without_a_loader_follow_by_name() -> None:
    class Config:
        intermediate_size = 8

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    model.config = Config()
    x = torch.randn(30, 4)
    assert remove_units(model, x[:2], {"0": [1, 2]}).model.config.intermediate_size == 2
    with torch.no_grad():
        model[2].weight[:, 3] = 0
    assert sa.compact(model, x[:2]).model.config.intermediate_size == 7
    assert model.config.intermediate_size == 8
    assert ISpaSP(model, x[:2]).run(x).model[2].bias is not None
