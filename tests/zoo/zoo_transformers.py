"""Small random models of ``transformers``, each with calibration batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Batches = list[dict[str, Tensor]]
Made = tuple[nn.Module, Batches]
VOCABULARY = 60


def tokens(lengths: tuple[int, ...] = (7, 5, 9), batch: int = 3, padded: bool = True, **more: Any) -> Batches:
    """Batches of several lengths, the last row of each padded."""
    generator = torch.Generator().manual_seed(5)
    out = []
    for length in lengths:
        ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
        mask = torch.ones_like(ids)
        if padded:
            mask[-1, length - 2 :] = 0
        out.append({"input_ids": ids, "attention_mask": mask, **more})
    return out


def pictures(size: int = 16, count: int = 3) -> Batches:
    generator = torch.Generator().manual_seed(6)
    return [{"pixel_values": torch.randn(4, 3, size, size, generator=generator)} for _ in range(count)]


def _text(kind: str, model: str, **options: Any) -> Callable[[], Made]:
    """A text model of the usual sizes; options add to them or, with None, take one away."""

    def build() -> Made:
        import transformers as hf

        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        sizes |= {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1}
        sizes |= {"eos_token_id": 2}
        config = {key: value for key, value in (sizes | options).items() if value is not None}
        torch.manual_seed(0)
        made = getattr(hf, model)(getattr(hf, kind)(**config))
        return made, tokens()

    return build


def _seq2seq(kind: str, model: str, **options: Any) -> Callable[[], Made]:
    """An encoder-decoder with a mask of its own for each side, of different lengths."""

    def build() -> Made:
        import transformers as hf

        torch.manual_seed(0)
        made = getattr(hf, model)(getattr(hf, kind)(vocab_size=VOCABULARY, **options))
        sources, targets = tokens((7, 5, 9)), tokens((4, 6, 5))
        batches = [
            {**source, "decoder_input_ids": target["input_ids"], "decoder_attention_mask": target["attention_mask"]}
            for source, target in zip(sources, targets, strict=True)
        ]
        return made, batches

    return build


def _vision(kind: str, model: str, size: int = 16, **options: Any) -> Callable[[], Made]:
    def build() -> Made:
        import transformers as hf

        torch.manual_seed(0)
        made = getattr(hf, model)(getattr(hf, kind)(**options))
        return made, pictures(size)

    return build


def _mobilenet() -> Made:
    """Of the blocks that repeat one another two are left: eight in all."""
    model, batches = _vision(
        "MobileNetV2Config",
        "MobileNetV2ForImageClassification",
        32,
        image_size=32,
        depth_multiplier=0.25,
        depth_divisible_by=4,
        min_depth=4,
        num_labels=3,
    )()
    body: Any = model.mobilenet_v2
    body.layer = nn.ModuleList(body.layer[number] for number in (0, 1, 2, 5, 6, 9, 12, 15))
    return model, batches


_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_VIT |= {"image_size": 16, "patch_size": 8, "num_labels": 3}
_LLAMA = {"num_key_value_heads": 2, "head_dim": 8}
_BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
_BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 32}
_BART |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_EXPERTS = {**_LLAMA, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

TRANSFORMERS: dict[str, Callable[[], Made]] = {
    "bert": _text("BertConfig", "BertModel"),
    "roberta": _text("RobertaConfig", "RobertaForSequenceClassification", max_position_embeddings=40),
    "electra": _text("ElectraConfig", "ElectraModel", embedding_size=16),
    "albert": _text("AlbertConfig", "AlbertModel", embedding_size=16),  # one layer's weights, run twice
    "distilbert": _text(
        "DistilBertConfig",
        "DistilBertModel",
        dim=32,
        hidden_dim=48,
        n_layers=2,
        n_heads=4,
        **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")),
    ),
    "llama": _text("LlamaConfig", "LlamaForCausalLM", **_LLAMA),
    "mistral": _text("MistralConfig", "MistralForCausalLM", **_LLAMA),
    "qwen2": _text("Qwen2Config", "Qwen2ForCausalLM", num_key_value_heads=2),
    "qwen3": _text("Qwen3Config", "Qwen3ForCausalLM", **_LLAMA),
    "gemma": _text("GemmaConfig", "GemmaForCausalLM", **_LLAMA),
    "phi3": _text("Phi3Config", "Phi3ForCausalLM", num_key_value_heads=2),
    "gpt2": _text("GPT2Config", "GPT2LMHeadModel", intermediate_size=None),
    "gpt_neox": _text("GPTNeoXConfig", "GPTNeoXForCausalLM"),
    "opt": _text("OPTConfig", "OPTForCausalLM", ffn_dim=48, word_embed_proj_dim=32, intermediate_size=None),
    "mixtral": _text("MixtralConfig", "MixtralForCausalLM", **_LLAMA, num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": _text(
        "Qwen2MoeConfig", "Qwen2MoeForCausalLM", **_EXPERTS, num_experts=4, shared_expert_intermediate_size=24
    ),
    "olmoe": _text("OlmoeConfig", "OlmoeForCausalLM", num_key_value_heads=2, num_experts=4, num_experts_per_tok=2),
    "t5": _seq2seq("T5Config", "T5Model", d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4),
    "bart": _seq2seq("BartConfig", "BartModel", **_BART),
    "vit": _vision("ViTConfig", "ViTForImageClassification", **_VIT),
    "deit": _vision("DeiTConfig", "DeiTForImageClassification", **_VIT),
    "resnet": _vision(
        "ResNetConfig",
        "ResNetForImageClassification",
        32,
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        num_labels=3,
    ),
    "regnet_y": _vision(
        "RegNetConfig",
        "RegNetForImageClassification",
        32,
        embedding_size=8,
        hidden_sizes=[16, 24],
        depths=[1, 1],
        groups_width=8,
        layer_type="y",
        num_labels=3,
    ),
    "convnextv2": _vision(
        "ConvNextV2Config",
        "ConvNextV2ForImageClassification",
        32,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1],
        image_size=32,
        num_labels=3,
    ),
    "mobilenet_v2": _mobilenet,
}
