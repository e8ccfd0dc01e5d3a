"""Refinement of Hugging Face models: keyword inputs, padding, outputs with and without logits."""

from __future__ import annotations

import pytest
import torch

from sparse_accel.prune import ISpaSP, refine

transformers = pytest.importorskip("transformers")


def bert():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return transformers.BertModel(transformers.BertConfig(vocab_size=50, max_position_embeddings=16, **sizes))


def gpt2():
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, n_inner=24)
    return transformers.GPT2LMHeadModel(config)


def llama():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, num_key_value_heads=1, **sizes))


def sentences(count: int, filler: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(count):
        ids = torch.randint(1, 50, (8, 10), generator=generator)
        mask = torch.ones(8, 10, dtype=torch.long)
        mask[:4, 7:] = 0
        batches.append({"input_ids": torch.where(mask == 1, ids, filler), "attention_mask": mask})
    return batches


@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_outputs_come_nearer_and_padding_does_not_count(make):
    torch.manual_seed(0)
    dense = make().eval()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.mul_(4 if parameter.dim() == 2 else 1)
    example = sentences(1)[0]
    plain = {"keep": 0.5, "method": "magnitude", "refit": None}
    result = ISpaSP(dense, example, **plain).run(sentences(6))
    first = refine(result, dense, sentences(6), steps=12, lr=2e-3)
    assert first.report.error[1] < 0.95 * first.report.error[0]
    assert len(first.report.windows) == 2  # the two blocks
    tables = [module for module in first.model.modules() if isinstance(module, torch.nn.Embedding)]
    before = [module for module in dense.modules() if isinstance(module, torch.nn.Embedding)]
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(tables, before, strict=True))
    if make is bert:  # sequences are in one dimension with those of padding: what is written there does not matter
        held = sentences(9)[8:]
        other = [
            {**batch, "input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], 7)} for batch in held
        ]
        errors = [refine(result, dense, sentences(2), held_out=x, steps=1).report.error[0] for x in (held, other)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-3)
        with pytest.raises(ValueError, match="padding: no batch has a mask"):
            refine(result, dense, sentences(2), padding="nothing")


def test_ispasp_refines_a_bfloat16_llama_on_samples_of_all_batches():
    torch.manual_seed(0)
    dense = llama().bfloat16().eval()
    refined = ISpaSP(dense, sentences(1)[0], keep=0.5, refine={"steps": 6, "batch_size": 4}).run(sentences(4))
    report = refined.report.refinement
    assert report.held_out == "4 of 32 samples"
    assert {p.dtype for p in refined.model.parameters()} == {torch.bfloat16}
    assert refined.model.generate(sentences(1)[0]["input_ids"], max_new_tokens=2, do_sample=False).shape == (8, 12)
