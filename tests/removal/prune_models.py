"""Models whose widths and heads the tests cut: small configurations of the usual architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from compact_models import BasicBlock
from torch import Tensor, nn


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Stem, blocks, pooling and classifier, as the ImageNet nets have them."""

    def __init__(self, blocks: list[nn.Module], stem: int, features: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False), nn.BatchNorm2d(stem)
        self.maxpool, self.layers = nn.MaxPool2d(3, 2, 1), nn.Sequential(*blocks)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.maxpool(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def basic_resnet() -> nn.Module:
    return ResNet([BasicBlock(8, 8, 1), BasicBlock(8, 8, 1), BasicBlock(8, 16, 2), BasicBlock(16, 16, 1)], 8, 16)


def bottleneck_resnet() -> nn.Module:
    return ResNet([Bottleneck(8, 6, 16, 1), Bottleneck(16, 6, 16, 1), Bottleneck(16, 8, 24, 2)], 8, 24)


def _norm(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True)]


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers = _norm(inputs, hidden, 1) if expand != 1 else []
        layers += _norm(hidden, hidden, 3, stride, hidden) + _norm(hidden, outputs, 1)[:-1]
        self.conv, self.residual = nn.Sequential(*layers), stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def mobilenet() -> nn.Module:
    blocks = [InvertedResidual(8, 6, 1, 1), InvertedResidual(6, 8, 2, 3), InvertedResidual(8, 8, 1, 3)]
    head = [*_norm(8, 20, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(20, 4)]
    return nn.Sequential(*_norm(3, 8, 3, 2), *blocks, *head)


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, inner: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, inner, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, growth, 3, padding=1, bias=False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(maps, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.layers = nn.ModuleList([DenseLayer(6 + 4 * i, 8, 4) for i in range(3)])
        self.norm, self.reduce = nn.BatchNorm2d(18), nn.Conv2d(18, 9, 1, bias=False)
        self.fc = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.stem(x)]
        for layer in self.layers:
            maps.append(layer(maps))
        x = F.avg_pool2d(self.reduce(F.relu(self.norm(torch.cat(maps, 1)))), 2)
        return self.fc(F.relu(x).mean((2, 3)))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), ConvNeXtBlock(8), ConvNeXtBlock(8), nn.Flatten(2), nn.Linear(16, 3))


class Attention(nn.Module):
    """Self-attention in the style of one's choice: how heads are cut, and how they are multiplied."""

    def __init__(self, style: str, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.style, self.num_heads, self.head_dim, self.inner = style, heads, width // heads, width
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        if self.style == "chunk":  # sizes of the code's own attributes
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            q, k, v = (y.view(batch, length, self.num_heads, self.head_dim).transpose(1, 2) for y in (q, k, v))
        elif self.style == "product":
            q, k, v = self.qkv(x).split(self.num_heads * self.head_dim, dim=-1)
            q, k, v = (y.reshape(batch, length, -1, self.head_dim).transpose(1, 2) for y in (q, k, v))
        elif self.style == "unflatten":
            q, k, v = (y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        else:  # all at once, as timm does
            qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0)
        if self.style == "einsum":
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * 0.5
            y = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)
        elif self.style == "product":
            y = (q @ k.transpose(-2, -1) * 0.5).softmax(dim=-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2)
        if self.style == "chunk":
            return self.out(y.reshape(batch, length, self.num_heads * self.head_dim))
        return self.out(y.flatten(2))


class Net(NamedTuple):
    """A model, its inputs, and the number of widths of each kind that are not coupled."""

    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    channels: int
    heads: int = 0


def image(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape, generator=torch.Generator().manual_seed(3))


NETS: dict[str, Net] = {
    "resnet_basic": Net(basic_resnet, image(2, 3, 32, 32), 4),
    "resnet_bottleneck": Net(bottleneck_resnet, image(2, 3, 32, 32), 8),
    "mobilenet": Net(mobilenet, image(2, 3, 16, 16), 5),
    "densenet": Net(DenseNet, image(2, 3, 8, 8), 8),
    "convnext": Net(convnext, image(2, 3, 16, 16), 2),
    **{
        f"attention_{style}": Net(lambda style=style: Attention(style), image(2, 5, 16), 0, 1)  # type: ignore[misc]
        for style in ("chunk", "product", "unflatten", "einsum", "timm")
    },
}


def _tokens(batch: int = 2, length: int = 7) -> dict[str, Tensor]:
    ids = (torch.arange(batch * length) * 5 % 50).reshape(batch, length)
    return {"input_ids": ids, "attention_mask": torch.ones(batch, length, dtype=torch.long)}


def hugging_face(name: str, attention: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A transformers model from a small configuration, and its inputs."""
    import transformers as hf

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    options: dict[str, Any] = {"attn_implementation": attention}
    picture = {"pixel_values": image(2, 3, 16, 16)()}
    torch.manual_seed(0)
    if name == "bert":
        return hf.BertModel(hf.BertConfig(vocab_size=50, max_position_embeddings=16, **small, **options)), _tokens()
    if name == "vit":
        config = hf.ViTConfig(image_size=16, patch_size=8, num_labels=3, **small, **options)
        return hf.ViTForImageClassification(config), picture
    if name == "deit":
        config = hf.DeiTConfig(image_size=16, patch_size=8, num_labels=3, **small, **options)
        return hf.DeiTForImageClassification(config), picture
    if name in ("llama", "qwen3"):
        kind = {"llama": (hf.LlamaForCausalLM, hf.LlamaConfig), "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config)}[name]
        small["num_attention_heads"] = 8
        config = kind[1](vocab_size=50, num_key_value_heads=4, head_dim=8, **small, **options)
        return kind[0](config), _tokens()
    if name == "gpt2":
        config = hf.GPT2Config(
            vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0, **options
        )
        return hf.GPT2LMHeadModel(config), _tokens()
    if name == "t5":
        config = hf.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
        return hf.T5Model(config), {**_tokens(), "decoder_input_ids": _tokens(2, 3)["input_ids"]}
    config = hf.ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], image_size=32, num_labels=3)
    return hf.ConvNextForImageClassification(config), {"pixel_values": image(2, 3, 32, 32)()}
