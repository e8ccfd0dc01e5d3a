"""Mixtures whose experts are slices of one parameter: those of transformers, and all ways to write one's own."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY = 40


def mixtral(**options):
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**{**sizes, **heads, "max_position_embeddings": 32, **options})).eval()


def qwen3_moe():
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, moe_intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=6, num_experts_per_tok=2,
        max_position_embeddings=32,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config).eval()


def qwen2_moe():
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, moe_intermediate_size=12, num_hidden_layers=1,
        shared_expert_intermediate_size=20, num_attention_heads=2, num_key_value_heads=1, num_experts=4,
        num_experts_per_tok=2, max_position_embeddings=32,
    )  # fmt: skip
    return Qwen2MoeForCausalLM(config).eval()


def gpt_oss():
    """``[E, in, out]`` with biases."""
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=12, num_hidden_layers=1, num_local_experts=4,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts_per_tok=2, max_position_embeddings=32,
    )  # fmt: skip
    return GptOssForCausalLM(config).eval()


def llama4():
    """``[E, in, out]`` in batched products, all tokens for every expert, times their scores."""
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    torch.manual_seed(0)
    config = Llama4TextConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=12, intermediate_size_mlp=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_local_experts=4, num_experts_per_tok=1,
        max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return Llama4ForCausalLM(config).eval()


TRANSFORMERS = {"mixtral": mixtral, "qwen3": qwen3_moe, "qwen2": qwen2_moe, "gpt_oss": gpt_oss, "llama4": llama4}


def tokens(batches=3, size=4, length=12, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(3, VOCABULARY, (size, length), generator=g)} for _ in range(batches)]


class Mixture(nn.Module):
    """Two experts' layers, relu between; which expert: the largest of the router's scores."""

    def __init__(self, form: str, experts: int = 3, dim: int = 8, inner: int = 12, idle: int | None = None) -> None:
        super().__init__()
        self.form, self.experts, self.idle = form, experts, idle
        self.router = nn.Parameter(torch.randn(dim, experts))
        up, down = (experts, inner, dim), (experts, dim, inner)
        if form in FLIPPED:
            up, down = (experts, dim, inner), (experts, inner, dim)
        self.up = nn.Parameter(torch.randn(up))
        self.down = nn.Parameter(torch.randn(down))
        self.head = nn.Linear(dim, 4)
        self.seen: list[dict[int, torch.Tensor]] | None = None

    def forward(self, x):
        shape, x = x.shape, x.flatten(0, -2)
        scores = x @ self.router
        if self.idle is not None:
            scores[:, self.idle] = -torch.inf
        choice = scores.argmax(1)
        out = torch.zeros_like(x)
        if self.form in ("bmm", "einsum", "matmul"):
            routed = x[None] * F.one_hot(choice, self.experts).T[:, :, None].to(x.dtype)  # [E, T, dim]
            out = self.all_at_once(routed).sum(0)
        elif self.form == "gathered":
            hidden = torch.relu(torch.bmm(self.up[choice], x[:, :, None]))
            out = torch.bmm(self.down[choice], hidden)[:, :, 0]
        elif self.form == "grouped":
            order = choice.argsort()
            ends = F.one_hot(choice, self.experts).sum(0).cumsum(0).to(torch.int32)
            hidden = torch.relu(F.grouped_mm(x[order], self.up.mT, offs=ends))
            out[order] = F.grouped_mm(hidden, self.down.mT, offs=ends)
        else:
            for expert in range(self.experts):
                chosen = choice == expert
                if bool(chosen.any()):
                    out[chosen] = self.one(expert, x[chosen]).to(out.dtype)
        return self.head(out.view(*shape[:-1], -1))

    def all_at_once(self, routed):
        if self.form == "bmm":
            return torch.bmm(torch.relu(torch.bmm(routed, self.up)), self.down)
        if self.form == "einsum":
            return torch.einsum("etf,edf->etd", torch.relu(torch.einsum("etd,efd->etf", routed, self.up)), self.down)
        return torch.relu(routed @ self.up) @ self.down

    def one(self, expert, x):
        if self.form == "linear":
            return F.linear(torch.relu(F.linear(x, self.up[expert])), self.down[expert])
        if self.form == "unbound":
            ups, downs = self.up.unbind(), self.down.unbind()
            return torch.relu(x @ ups[expert].T) @ downs[expert].T
        if self.form == "left":
            return (self.down[expert] @ torch.relu(self.up[expert] @ x.T)).T
        if self.form == "token by token":
            return torch.stack([self.down[expert] @ torch.relu(self.up[expert].mv(token)) for token in x])
        assert self.form == "right"
        return torch.relu(x @ self.up[expert]) @ self.down[expert]


FLIPPED = ("right", "bmm", "matmul")
FORMS = ("linear", "unbound", "left", "token by token", "right", "bmm", "matmul", "einsum", "gathered", "grouped")


def routed(model, x):
    """Inputs of every expert's first matrix, and of its second."""
    flat = x.flatten(0, -2)
    scores = flat @ model.router
    if model.idle is not None:
        scores[:, model.idle] = -torch.inf
    choice = scores.argmax(1)
    up = model.up.mT if model.form in FLIPPED else model.up
    firsts = [flat[choice == expert] for expert in range(model.experts)]
    return firsts, [torch.relu(first @ up[expert].T) for expert, first in enumerate(firsts)]
