"""Tokens of a tiny Llama, one after the other, its sparse linear layers chosen by the clock."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from sparse_accel.acceleration.accelerate import accelerate
from sparse_accel.bench.case import Case, Settings


def llama_cases(settings: Settings, percents: Sequence[int]) -> Iterator[Case]:
    """A step of one token, for each share of zeros; nothing without transformers."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    torch.manual_seed(0)
    dtype = torch.float32 if settings.dtype == "float64" else settings.torch_dtype
    whole = LlamaForCausalLM(config).eval().to(settings.device, dtype)
    for zeros in percents:
        dense = copy.deepcopy(whole)
        kept = 0
        for module in dense.model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data[torch.rand_like(module.weight, dtype=torch.float32) < zeros / 100] = 0
                kept += int(torch.count_nonzero(module.weight)) * module.weight.element_size()
                kept += module.weight.numel() // 8
        step = {"input_ids": torch.zeros(1, 1, dtype=torch.long, device=settings.device)}
        sparse = accelerate(dense, step).model
        yield Case(
            f"Llama {zeros} %, one token",
            "4 layers",
            partial(_step, sparse, settings.device),
            kept,
            peer=partial(_step, dense, settings.device),
            peer_name="dense",
        )


def _step(model: Any, device: str) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False).logits
    return logits
