"""Folders and files as users of the command line have them: tiny, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = "the cat sat on a mat and looked at all those other cats who had no mat to sit on but did not mind it much"
TEXT = "\n".join(f"{WORDS[i % 40 :]} {WORDS[: i % 60]}" for i in range(60))

NETS = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))

def other():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

def conv():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))

def breaks():
    raise KeyError("no such thing")

number = 3

def batches():
    torch.manual_seed(1)
    return [(torch.randn(8, 6), torch.zeros(8)) for _ in range(4)]
"""


def make_tokenizer(folder: Path) -> int:
    """A word-level tokenizer with marks around a sequence; its number of tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    marks = ["[PAD]", "[UNK]", "<s>", "</s>"]
    vocabulary = {word: index for index, word in enumerate([*marks, *dict.fromkeys(WORDS.split())])}
    own = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    pairs = [("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
    own.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=pairs)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=own, **names).save_pretrained(folder)
    return len(vocabulary)


def make_llama(folder: Path, *, vocabulary: int | None = None, tokenizer: bool = True, **more: Any) -> Path:
    """A random Llama with its tokenizer, saved as users find it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    count = make_tokenizer(folder) if tokenizer else 300
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary or count, **(sizes | more))).save_pretrained(folder)
    return folder


def make_bert(folder: Path) -> Path:
    """A random BERT, whose heads no configuration can describe, with its tokenizer."""
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    count = make_tokenizer(folder)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=count, num_attention_heads=4, max_position_embeddings=64, **sizes)
    BertModel(config).save_pretrained(folder)
    return folder


def make_vit(folder: Path) -> Path:
    """A random ViT with a preprocessor."""
    from transformers import ViTConfig, ViTForImageClassification

    folder.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = ViTConfig(image_size=16, patch_size=8, num_labels=3, intermediate_size=48, **sizes)
    ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"do_resize": true, "size": {"height": 16, "width": 16}, "do_rescale": true, "rescale_factor": 0.00392156862,'
        ' "do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2}'
    )
    return folder
