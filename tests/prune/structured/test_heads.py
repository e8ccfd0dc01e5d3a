"""Heads of attention with one key-value head for all, and of ``nn.MultiheadAttention``."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.prune import ISpaSP, OpenAttention, find_widths, open_attention, remove_units

X = torch.randn(24, 5, 16, generator=torch.Generator().manual_seed(1))


class SharedKeys(nn.Module):
    """Four query heads, one key and value head for all of them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.num_heads, self.head_dim = how, 4, 4
        self.q, self.k, self.v, self.o = (nn.Linear(*size) for size in ((16, 16), (16, 4), (16, 4), (16, 16)))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
        k, v = self.k(x)[:, None], self.v(x)[:, None]
        if self.how == "expand":
            k, v = (y.expand(batch, self.num_heads, length, self.head_dim) for y in (k, v))
        if self.how == "matmul":
            y = ((q @ k.transpose(2, 3)) / 2).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.how == "gqa")
        return self.o(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("how", ["plain", "matmul", "expand", "gqa"])
def test_query_heads_of_a_single_key_value_head(how: str) -> None:
    torch.manual_seed(0)
    model = SharedKeys(how).eval()
    (width,) = find_widths(model, X[:2])
    assert (width.kind, width.units, width.producers, len(width.consumers)) == ("heads", 4, ["q"], 1)
    small = remove_units(model, X[:2], {width.name: [0, 2, 3]}).model  # compared with the dense one there
    assert (small.num_heads, small.q.out_features, small.k.out_features, small.o.in_features) == (3, 12, 4, 12)
    masked = SharedKeys(how).eval()
    masked.load_state_dict(model.state_dict())
    with torch.no_grad():
        masked.o.weight[:, 4:8] = 0
        assert torch.allclose(small(X), masked(X), atol=1e-5)
        masked.o.weight[:, 8:] = 0
    assert sa.compact(masked, X[:2]).model.num_heads == 1


@pytest.mark.parametrize("attention, padded", list(product(["sdpa", "eager"], [False, True])))
def test_llama_with_a_single_key_value_head(attention: str, padded: bool, tmp_path) -> None:
    pytest.importorskip("transformers")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 4}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=1, pad_token_id=0, eos_token_id=1)
    config._attn_implementation = attention
    model, ids = LlamaForCausalLM(config).eval(), torch.arange(24).reshape(4, 6) + 2
    mask = torch.ones_like(ids)
    mask[:2, :2] = 0
    example = {"input_ids": ids, "attention_mask": mask} if padded else {"input_ids": ids}
    result = ISpaSP(model, example, only=["heads"]).run([example])
    small = result.model
    assert {tuple(change.units) for change in result.report.widths} == {(4, 2)}
    layer = small.model.layers[0].self_attn
    assert (layer.q_proj.out_features, layer.k_proj.out_features, layer.num_key_value_groups) == (8, 4, 2)
    assert (small.config.num_attention_heads, small.config.num_key_value_heads) == (2, 1)
    small.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation=attention).eval()
    both = {"input_ids": ids, "attention_mask": mask}  # whatever path the example took
    with torch.no_grad():
        assert torch.equal(again(**both).logits, small(**both).logits)
    tokens = [net.generate(**both, max_new_tokens=4, do_sample=False) for net in (again, small)]
    assert torch.equal(*tokens)


KINDS = [
    {},
    {"batch_first": True},
    {"bias": False, "batch_first": True},
    {"kdim": 6, "vdim": 10, "batch_first": True},
    {"dropout": 0.1},
]


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("need_weights", [False, True])
def test_opened_attention_computes_the_same(options: dict, need_weights: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, **options).eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    opened = open_attention(attention)
    assert isinstance(opened, OpenAttention)
    q, k, v = (torch.randn(3, 5, size) for size in (8, options.get("kdim", 8), options.get("vdim", 8)))
    if not options.get("batch_first"):
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 5])
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    by_head = torch.randn(6, 5, 5)
    for masks in (
        {},
        {"key_padding_mask": padding},
        {"attn_mask": causal, "is_causal": True},
        {"attn_mask": causal, "key_padding_mask": padding},
        {"attn_mask": by_head, "average_attn_weights": False},
    ):
        wanted, came = (net(q, k, v, need_weights=need_weights, **masks) for net in (attention, opened))
        assert torch.allclose(came[0], wanted[0], atol=1e-6)
        assert (came[1] is None) == (wanted[1] is None)
        if need_weights:
            assert torch.allclose(came[1], wanted[1], atol=1e-6)
    one = q[0] if options.get("batch_first") else q[:, 0]
    if not options.get("kdim"):
        assert torch.allclose(opened(one, one, one)[0], attention(one, one, one)[0], atol=1e-6)


@pytest.mark.parametrize("padded", [False, True])
def test_heads_of_a_transformer_encoder(padded: bool, tmp_path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dropout=0.0)
        return nn.TransformerEncoder(layer, 2).eval()

    model = make()
    opened = open_attention(model)
    assert type(model.layers[0].self_attn) is nn.MultiheadAttention
    mask = torch.zeros(24, 5, dtype=torch.bool)
    mask[::2, 3:] = padded
    with torch.no_grad():
        wanted, came = (net(X, src_key_padding_mask=mask)[~mask] for net in (model, opened))
    assert torch.allclose(came, wanted, atol=1e-5)
    data = {"src": X, "src_key_padding_mask": mask} if padded else X
    result = ISpaSP(opened, {"src": X[:2], "src_key_padding_mask": mask[:2]} if padded else X[:2]).run(data)
    assert {(change.kind, *change.units) for change in result.report.widths} == {("heads", 4, 2), ("channels", 24, 12)}
    assert result.model.layers[1].self_attn.num_heads == 2
    sa.save(result, tmp_path / "small")
    again = sa.load(tmp_path / "small", open_attention(make()))
    with torch.no_grad():
        assert torch.equal(*(net(X, src_key_padding_mask=mask) for net in (again.eval(), result.model.eval())))


def test_closed_attention_says_how_to_open_it() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True).eval()
    assert "prune.open_attention makes them units" in find_widths(layer, X[:2]).refused["self_attn"]


def test_attention_that_cannot_be_opened_is_refused_by_name() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2, add_zero_attn=True))
    with pytest.raises(sa.UnsupportedModelError, match=r"1: MultiheadAttention: add_bias_kv and add_zero_attn"):
        open_attention(net)
    net[1] = nn.MultiheadAttention(8, 2)
    net[1].register_forward_hook(lambda *_: None)
    with pytest.raises(sa.UnsupportedModelError, match="1: MultiheadAttention: it has forward hooks"):
        open_attention(net)
    with pytest.raises(sa.UnsupportedModelError, match=r"expected one with nn.MultiheadAttention, got none"):
        open_attention(net[0])
    opened = open_attention(nn.MultiheadAttention(8, 2, batch_first=True))
    x = torch.randn(2, 3, 8)
    with pytest.raises(ValueError, match=r"attn_mask: expected \[4, ...\], batch times heads, got \[6, 3, 3\]"):
        opened(x, x, x, attn_mask=torch.zeros(6, 3, 3))
    with pytest.raises(ValueError, match="attn_mask: expected one beside is_causal=True, got None"):
        opened(x, x, x, is_causal=True)
