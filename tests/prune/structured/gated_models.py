"""Networks whose hidden channels are gated by themselves: squeeze-and-excitation and its kin, small and random."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from structured_models import images, settle
from torch import Tensor, nn
from torch.nn import functional as F


class Squeeze(nn.Module):
    """Squeeze-and-excitation by two 1 x 1 convolutions."""

    def __init__(
        self, channels: int, squeezed: int, act: Callable[[Tensor], Tensor], gate: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.act, self.gate = act, gate

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True))))) * x


class LinearSqueeze(nn.Module):
    """The same by linear layers and a view, as SENet has it; in place on request."""

    def __init__(self, channels: int, squeezed: int, *, in_place: bool = False) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, squeezed), nn.Linear(squeezed, channels)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        y = F.adaptive_avg_pool2d(x, 1).view(batch, channels)
        y = torch.sigmoid(self.fc2(F.relu(self.fc1(y)))).view(batch, channels, 1, 1)
        return x.mul_(y) if self.in_place else x * y.expand_as(x)


def conv(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class MBConv(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excitation, projection: EfficientNet, MobileNetV3."""

    def __init__(self, inputs: int, outputs: int, expand: int, size: int, stride: int, style: str) -> None:
        super().__init__()
        hidden = inputs * expand
        self.act: Callable[[Tensor], Tensor] = F.silu if style == "efficientnet" else F.hardswish
        self.expand = conv(inputs, hidden) if expand > 1 else None
        self.depth = conv(hidden, hidden, size, stride, hidden)
        if style == "efficientnet":
            self.squeeze = Squeeze(hidden, max(2, inputs // 4), F.silu, torch.sigmoid)
        else:
            self.squeeze = Squeeze(hidden, hidden // 4, F.relu, F.hardsigmoid)
        self.project = conv(hidden, outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.act(self.expand(x))
        y = self.project(self.squeeze(self.act(self.depth(y))))
        return x + y if self.residual else y


class SEBottleneck(nn.Module):
    """ResNet's bottleneck with the gate on the block's result (SENet) or on its hidden channels (RegNetY)."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, groups: int, style: str) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(inputs, inner), conv(inner, inner, 3, stride, groups)
        self.conv3, self.style = conv(inner, outputs), style
        self.squeeze: nn.Module = (
            Squeeze(inner, max(2, inputs // 4), F.relu, torch.sigmoid)
            if style == "regnety"
            else LinearSqueeze(outputs, 4, in_place=style == "senet_in_place")
        )
        self.down = conv(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv2(F.relu(self.conv1(x))))
        y = self.conv3(self.squeeze(y)) if self.style == "regnety" else self.squeeze(self.conv3(y))
        return F.relu(y + (x if self.down is None else self.down(x)))


class Trunk(nn.Module):
    """Stem, blocks, pooling, classifier; a last convolution before the pooling as in EfficientNet."""

    def __init__(self, stem: int, blocks: list[nn.Module], last: int, features: int) -> None:
        super().__init__()
        self.stem, self.blocks = conv(3, stem, 3), nn.Sequential(*blocks)
        self.top = conv(last, features) if features != last else nn.Identity()
        self.fc = nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.silu(self.stem(x)))
        return self.fc(F.silu(self.top(x)).mean((2, 3)))


def _mbconv(style: str) -> nn.Module:
    blocks = [
        MBConv(8, 8, 1, 3, 1, style),
        MBConv(8, 12, 6, 3, 2, style),
        MBConv(12, 12, 6, 5, 1, style),
        MBConv(12, 16, 6, 3, 1, style),
    ]
    return Trunk(8, list(blocks), 16, 48)


def _bottlenecks(style: str, groups: int) -> nn.Module:
    blocks = [SEBottleneck(8, 16, 24, 1, groups, style), SEBottleneck(24, 16, 24, 1, groups, style)]
    return Trunk(8, list(blocks), 24, 24)


class SpatialAndChannel(nn.Module):
    """CBAM: the same two layers on the mean and on the maximum, then a map of positions; the ungated sum is added."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.hidden = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 24, 3, padding=1)
        self.down, self.up = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.project, self.fc = nn.Conv2d(24, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = F.gelu(self.hidden(x))
        pooled = h.mean((2, 3), keepdim=True) + h.amax((2, 3), keepdim=True)
        h = h + h * torch.sigmoid(self.up(F.relu(self.down(pooled))))
        return self.fc((x + self.project(h)).mean((2, 3)))


class Net(NamedTuple):
    """A model and its hidden widths: by name the units before, and how many widths are pruned with them.

    ``macs`` is the most that may be left at ``keep=0.5``.
    """

    build: Callable[[], nn.Module]
    gated: dict[str, int]
    gate: str
    macs: float


GATED: dict[str, Net] = {
    "efficientnet": Net(
        lambda: _mbconv("efficientnet"),
        {"blocks.1.expand.0": 48, "blocks.2.expand.0": 72, "blocks.3.expand.0": 72},
        "squeeze.expand",
        0.53,
    ),
    "mobilenetv3": Net(
        lambda: _mbconv("mobilenetv3"),
        {"blocks.1.expand.0": 48, "blocks.2.expand.0": 72, "blocks.3.expand.0": 72},
        "squeeze.expand",
        0.53,
    ),
    "regnety": Net(
        lambda: _bottlenecks("regnety", 4), {"blocks.0.conv2.0": 16, "blocks.1.conv2.0": 16}, "squeeze.expand", 0.45
    ),
    "cbam": Net(SpatialAndChannel, {"hidden": 24}, "up", 0.53),
}


def gated(name: str) -> nn.Module:
    """A settled net of :data:`GATED`."""
    torch.manual_seed(0)
    return settle(GATED[name].build(), images())


def senet(*, in_place: bool = False) -> nn.Module:
    """A settled SENet: its gates are on the residual blocks' results."""
    torch.manual_seed(0)
    return settle(_bottlenecks("senet_in_place" if in_place else "senet", 1), images())
