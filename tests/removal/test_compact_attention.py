"""Compaction of attention: heads that nobody reads go as a whole, exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compact_checks import compact_checked, widths
from compact_models import randomize
from prune_models import Attention, hugging_face
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_accel.channels.trace import trace

STYLES = ("chunk", "product", "unflatten", "einsum", "timm")


@pytest.mark.parametrize("style", STYLES)
def test_unread_heads_go(style: str) -> None:
    model = randomize(Attention(style))
    with torch.no_grad():
        model.out.weight[:, 4:12] = 0  # the second and third of four heads
        model.out.weight[:, 1] = 0  # one feature of the first: stays
    small = compact_checked(model, torch.randn(2, 3, 16)).model
    assert widths(small) == {"qkv": (16, 24), "out": (8, 16)}
    assert torch.equal(small.out.weight, model.out.weight[:, [0, 1, 2, 3, 12, 13, 14, 15]])


def test_heads_without_values_go() -> None:
    model = randomize(Attention("timm"))
    with torch.no_grad():
        for table in (model.qkv.weight, model.qkv.bias):
            table[32 + 8 : 32 + 12] = 0  # values of the third head
    assert widths(compact_checked(model, torch.randn(2, 3, 16)).model) == {"qkv": (16, 36), "out": (12, 16)}


def test_one_head_stays() -> None:
    model = randomize(Attention("chunk"))
    with torch.no_grad():
        model.out.weight.zero_()
    small = compact_checked(model, torch.randn(2, 3, 16)).model
    assert widths(small) == {"qkv": (16, 12), "out": (4, 16)}
    assert small.num_heads == 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_grouped_queries(attention: str) -> None:
    pytest.importorskip("transformers")
    model, example = hugging_face("llama", attention)
    randomize(model.eval())
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[:, 16:32] = 0  # both query heads of the second pair of keys and values
            layer.self_attn.o_proj.weight[:, 40:48] = 0  # one of two: stays
            layer.mlp.down_proj.weight[:, :7] = 0
    small = compact_checked(model, example).model
    attention_layer = small.model.layers[0].self_attn
    assert (attention_layer.q_proj.out_features, attention_layer.v_proj.out_features) == (48, 24)
    assert small.model.layers[1].mlp.intermediate_size == 41


class OtherAttention(nn.Module):
    """Attention whose heads meet something that is not cut along."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.zeros(4, 3, 3))
        self.mix, self.out = nn.Parameter(torch.eye(4)), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(2, 3, -1, 2).transpose(1, 2) for layer in (self.query, self.key, self.value))
        if self.kind == "shared keys":  # of one head that all query heads use
            k = k[:, :1]
        scores = q @ k.transpose(2, 3)
        if self.kind == "bias":
            scores = scores + self.bias
        if self.kind == "mixed":  # talking heads
            scores = torch.einsum("bhqk,hg->bgqk", scores, self.mix)
        weights = scores.softmax(1 if self.kind == "over heads" else -1)
        if self.kind == "sum":
            return self.out((weights @ v).sum(1).repeat(1, 1, 4))
        return self.out((weights @ v).transpose(1, 2).reshape(2, 3, -1))


@pytest.mark.parametrize("kind", ["bias", "mixed", "over heads", "sum"])
def test_what_joins_heads_keeps_them(kind: str) -> None:
    model = randomize(OtherAttention(kind))
    with torch.no_grad():
        model.out.weight[:, 2:4] = 0
    assert widths(compact_checked(model, torch.randn(2, 3, 8)).model) == widths(model)


def test_query_heads_of_shared_keys_go() -> None:
    model = randomize(OtherAttention("shared keys"))
    with torch.no_grad():
        model.out.weight[:, 2:4] = 0
    small = compact_checked(model, torch.randn(2, 3, 8)).model
    assert widths(small) == {"query": (8, 6), "key": (8, 8), "value": (8, 6), "out": (6, 8)}


def test_single_head_without_a_view_keeps_queries_and_cuts_values() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(6, 7)
            self.out = nn.Linear(7, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x)))

    model = randomize(Single())
    with torch.no_grad():
        model.out.weight[:, [1, 4]] = 0
        model.query.weight[2] = 0
    small: Any = compact_checked(model, torch.randn(2, 3, 6)).model
    assert widths(small) == {"query": (6, 5), "key": (6, 5), "value": (6, 5), "out": (5, 6)}


class StreamWidth(Attention):
    """Joins the heads to the width of the stream, not to that of the heads."""

    def __init__(self) -> None:
        super().__init__("timm")
        self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        return self.head(x + self.out(y))


def test_sizes_of_other_channels_keep_the_heads() -> None:
    model = randomize(StreamWidth())
    with torch.no_grad():
        model.out.weight[:, :8] = 0
        model.head.weight[:, :3] = 0
        model.qkv.weight[:, :3] = 0
    result = compact_checked(model, torch.randn(2, 3, 6))
    assert widths(result.model)["qkv"][1] == 48
    assert any("asks for the size 16 where channels lie" in note for note in result.plan["notes"])


def test_halves_by_a_measured_size() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Conv2d(2, 12, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(x)
            value, gate = y.split(y.shape[1] // 2, 1)
            batch, channels, height, width = y.shape
            swapped = y.view(batch, 2, channels // 2, height, width).flip(1).flatten(1, 2)
            return self.down(value * gate.sigmoid()) + self.down(swapped[:, :6] if self.training else value)

    model = randomize(Halves()).eval()
    with torch.no_grad():
        model.down.weight[:, 1:3] = 0
    assert widths(compact_checked(model, torch.randn(2, 2, 4, 4)).model) == {"up": (2, 8), "down": (4, 2)}


@pytest.mark.parametrize("normalized", [nn.LayerNorm(4), nn.RMSNorm(4)])
def test_norms_within_heads(normalized: nn.Module) -> None:
    class Normed(Attention):
        def __init__(self) -> None:
            super().__init__("chunk")
            self.norm = normalized

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (y.unflatten(-1, (-1, 4)).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
            y = F.scaled_dot_product_attention(self.norm(q), self.norm(k), v)
            return self.out(y.transpose(1, 2).flatten(2))

    model = randomize(Normed())
    with torch.no_grad():
        model.out.weight[:, :8] = 0
    assert widths(compact_checked(model, torch.randn(2, 3, 16)).model)["out"] == (8, 16)


def test_attributes_are_plain_integers_again() -> None:
    model = randomize(Attention("chunk"))
    small = compact_checked(model, torch.randn(2, 3, 16)).model
    trace(model.eval(), torch.randn(2, 3, 16))
    assert {type(net.num_heads) for net in (model, small)} == {int}
