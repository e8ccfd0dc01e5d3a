"""Widths of one size that stay of one size, so that a configuration describes them; shares of all units together."""

from __future__ import annotations

from typing import Any

import pytest
import structured_models as nets
import torch
from torch import nn

from sparse_accel.prune import ISpaSP

IDS = torch.randint(2, 40, (6, 8), generator=torch.Generator().manual_seed(0))


def llama(**options: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes | heads | options)).eval()


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokens = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=32, **tokens)).eval()


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("asked", [{"keep": 0.5}, {"budget": {"params": 0.7}}, {"budget": {"units": 0.6}}], ids=str)
def test_from_pretrained_builds_what_was_saved(make, asked, tmp_path) -> None:
    pytest.importorskip("transformers")
    model = make()
    result = ISpaSP(model, {"input_ids": IDS[:2]}, uniform=True, **asked).run({"input_ids": IDS})
    small = result.model
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, small(IDS).logits)
    ways = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(again.generate(IDS, **ways), small.generate(IDS, **ways))
    sizes: dict[tuple[str, int], set[int]] = {}
    for change in result.report.widths:
        sizes.setdefault((change.kind, change.units[0]), set()).add(change.units[1])
    assert sizes
    assert all(len(kept) == 1 for kept in sizes.values())
    assert make is llama or ("heads", 4) not in sizes
    said = [note for note in result.report.notes if "no configuration says 2 of 4 heads" in note]
    assert bool(said) == (make is gpt2)
    if "params" in asked.get("budget", {}):
        before, after = result.report.params
        assert 0.5 * before < after <= 0.7 * before


def test_units_are_given_out_over_all_widths() -> None:
    images = nets.images()
    result = ISpaSP(nets.resnet(16), images[:1], budget={"units": 0.5}).run(images)
    before, after = (sum(change.units[which] for change in result.report.widths) for which in (0, 1))
    assert 0.5 * before - 2 <= after <= 0.5 * before
    assert len({change.units[1] / change.units[0] for change in result.report.widths}) > 1


def test_what_stays_keeps_its_size_with_all_that_are_alike() -> None:
    images, model = nets.images(), nets.resnet(16)
    free = ISpaSP(model, images[:1], keep=0.5, uniform=True).run(images)
    plain = ISpaSP(model, images[:1], keep=0.5).run(images)
    assert free.kept == plain.kept  # one share is uniform as it is


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"only": ["model.layers.0.*"]}, r"uniform: expected only and skip to take all 2 heads widths of 2 units"),
        ({"skip": ["model.layers.1.mlp*"]}, r"got model.layers.0.mlp.gate_proj without model.layers.1.mlp.gate_proj"),
        ({"keep_per_layer": {"model.layers.1.mlp*": 6}}, r"keep_per_layer: with uniform=True expected one number"),
    ],
    ids=["only", "skip", "keep_per_layer"],
)
def test_what_contradicts_itself_is_refused_by_name(asked, message) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=message):
        ISpaSP(llama(), {"input_ids": IDS[:2]}, uniform=True, **asked).run({"input_ids": IDS})


def test_blocks_keep_shares_of_their_own_and_budgets_respect_them() -> None:
    images, model = nets.images(), nets.resnet(16)
    shares = {"layer1.*": 0.25, "*": 0.75}
    result = ISpaSP(model, images[:1], keep_per_layer=shares).run(images)
    for change in result.report.widths:
        assert change.units[1] == int(change.units[0] * (0.25 if change.name.startswith("layer1.") else 0.75))


@pytest.mark.parametrize("name", ["only", "skip", "keep_per_layer"])
@pytest.mark.parametrize("pattern", ["head_dim", "*.head_dim", "model.layers.*.d_kv"])
def test_the_size_of_heads_is_refused_by_name(name, pattern) -> None:
    pytest.importorskip("transformers")
    asked: Any = {pattern: 0.5} if name == "keep_per_layer" else [pattern]
    with pytest.raises(ValueError, match=rf"{name}: .*the size of heads is not pruned .*expected whole heads"):
        ISpaSP(llama(), {"input_ids": IDS[:2]}, **{name: asked}).run({"input_ids": IDS})
