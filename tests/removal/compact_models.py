"""Small networks of every topology that compaction must handle, and ways to plant zeros, for the tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, biases, norm parameters and running statistics, nothing at its default."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return model


def unread(module: nn.Module, channels: Iterable[int], width: int = 1) -> None:
    """Zero what a layer reads of these input channels; ``width`` columns each for a linear layer after a flatten."""
    with torch.no_grad():
        for channel in channels:
            if isinstance(module, nn.modules.conv._ConvTransposeNd):
                module.weight[channel] = 0
            else:
                module.weight[:, channel * width : (channel + 1) * width] = 0


def silent(module: nn.Module, channels: Iterable[int], bias: float | None = 0.0) -> None:
    """Zero these filters; their bias becomes ``bias``, or stays for None."""
    with torch.no_grad():
        for channel in channels:
            module.weight[channel] = 0
            if module.bias is not None and bias is not None:
                module.bias[channel] = bias


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.gelu(self.b(torch.relu(self.a(x)))))


class LeNet(nn.Module):
    def __init__(self, flatten: str = "flatten") -> None:
        super().__init__()
        self.flatten = flatten
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3)
        self.fc1, self.fc2 = nn.Linear(8 * 2 * 2, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        if self.flatten == "fixed":
            x = x.view(-1, 32)
        elif self.flatten == "sizes":
            x = x.view(x.size(0), x.size(1) * x.shape[2] * x.shape[3])
        elif self.flatten == "rest":
            x = x.reshape(len(x), -1)
        else:
            x = x.flatten(1)
        return self.fc2(F.relu(self.fc1(x)))


class Vgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 6), (6, 8), (8, 8)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Dropout())
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(8 * 16, 12), nn.ReLU(), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return F.relu_(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.block1, self.block2, self.block3 = BasicBlock(8, 8, 1), BasicBlock(8, 12, 2), BasicBlock(12, 12, 1)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = self.block3(self.block2(self.block1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class DenseNet(nn.Module):
    """Every layer reads the concatenation of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(9, 3, 1)
        self.norm, self.fc = nn.BatchNorm2d(12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        b = F.relu(self.b(a))
        c = self.c(torch.cat([a, b], 1))
        return self.fc(F.relu(self.norm(torch.cat((a, b, c), dim=1))).mean((2, 3)))


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3)
        self.one, self.three = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 3, padding=1)
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(6, 3, 1))
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        return self.head(F.relu(torch.cat([self.one(x), self.three(x), self.pool(x)], 1)))


class ResNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.grouped, self.expand = (
            nn.Conv2d(3, 12, 1),
            nn.Conv2d(12, 12, 3, groups=3),
            nn.Conv2d(12, 2, 1),
        )
        self.bn = nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(F.relu(self.bn(self.grouped(F.relu(self.reduce(x))))))


class MobileBlock(nn.Module):
    def __init__(self, multiplier: int = 1) -> None:
        super().__init__()
        wide = 6 * multiplier
        self.expand, self.bn1 = nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, wide, 3, padding=1, groups=6, bias=False)
        self.bn2, self.project, self.bn3 = nn.BatchNorm2d(wide), nn.Conv2d(wide, 3, 1, bias=False), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn1(self.expand(x)))
        return x + self.bn3(self.project(F.relu6(self.bn2(self.depthwise(y)))))


class Decoder(nn.Module):
    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.up1 = nn.ConvTranspose2d(4, 8, 2, stride=2, groups=groups)
        self.bn = nn.BatchNorm2d(8)
        self.up2 = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=groups)
        self.out = nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.up2(F.elu(self.bn(self.up1(x))))))


class Conv1dNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv1d(2, 6, 5), nn.BatchNorm1d(6), nn.Conv1d(6, 5, 3, dilation=2)
        self.fc = nn.Linear(5 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.bn(self.a(x)))
        return self.fc(F.avg_pool1d(F.relu(self.b(x)), 2).flatten(1))


class Conv3dNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv3d(1, 5, 2), nn.BatchNorm3d(5), nn.Conv3d(5, 4, 2)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool3d(F.relu(self.b(F.relu(self.bn(self.a(x))))), 1).flatten(1))


class Twice(nn.Module):
    """One hidden layer used twice, as in a recurrent net."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.hidden, self.leave = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.enter(x))
        for _ in range(2):
            x = torch.tanh(self.hidden(x))
        return self.leave(x)


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder's transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 8)
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.encoder(x)), self.encoder.weight.t(), self.bias)


class Sequence(nn.Module):
    """Linear layers on the last of three dimensions, a residual sum and a mean over the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(1))


class TwoInputs(nn.Module):
    """Two inputs, a dict of outputs, one hidden map shown outside."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
        self.shown, self.head = nn.Conv2d(5, 4, 1), nn.Conv2d(4, 2, 1)
        self.side = nn.Conv2d(5, 3, 1)

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> dict[str, Any]:
        x = F.relu(self.left(left) + scale * self.right(right))
        shown = self.shown(x)
        return {"shown": shown, "heads": [self.head(F.relu(shown)), torch.sigmoid(self.side(x))]}


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 2, 1)
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return self.b(x * gate[:, :, None, None])


class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 12, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(F.pixel_shuffle(self.a(x), 2)))


class Gated(nn.Module):
    """Two halves of one projection, one gating the other."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, dim=-1)
        return self.down(value * torch.sigmoid(gate))


class FrozenNorm(nn.Module):
    """A norm written out by hand, its statistics in buffers, and a gated linear unit."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 3), nn.Conv2d(3, 2, 1)
        self.register_buffer("mean", torch.linspace(-1, 1, 6))
        self.register_buffer("scale", torch.linspace(0.5, 2, 6))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale.reshape(1, -1, 1, 1).rsqrt()
        x = (self.a(x) - self.mean[None, :, None, None]) * scale
        return self.b(F.glu(x, dim=1))


class TwoHalves(nn.Module):
    """Two halves of one projection, each with a reader of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.left, self.right = nn.Linear(5, 12), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.up(x)).chunk(2, dim=-1)
        return self.left(left) - self.right(right)


class SpatialAttention(nn.Module):
    """A map of one channel weighs all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.attend, self.b = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 1, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.b(x * torch.sigmoid(self.attend(x)))
