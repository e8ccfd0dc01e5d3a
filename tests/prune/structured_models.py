"""Small networks, and data, for the tests of structured pruning."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """conv, norm, ReLU, conv, norm, addition, ReLU; the second addition is written in place on request."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, in_place: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU(inplace=in_place)
        self.in_place = in_place
        self.down = None
        if stride > 1 or inputs != outputs:
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        short = x if self.down is None else self.down(x)
        if self.in_place:
            y += short
        else:
            y = y + short
        return self.act(y)


class ResNet(nn.Module):
    """Three basic blocks on 8 x 8 images."""

    def __init__(self, width: int = 8, *, in_place: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(
            BasicBlock(width, width, in_place=in_place), BasicBlock(width, width, in_place=in_place)
        )
        self.layer2 = BasicBlock(width, 2 * width, 2, in_place=in_place)
        self.fc = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


def settle(model: nn.Module, x: Tensor) -> nn.Module:
    """Random norms with the statistics of data, so that the net is like a trained one; in eval mode."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.2)
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def images(count: int = 48, channels: int = 3, size: int = 8, seed: int = 1) -> Tensor:
    """Smooth random images, so that channels are correlated."""
    noise = torch.randn(count, channels, size + 2, size + 2, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, 3, 1) * 2


def resnet(width: int = 8, *, in_place: bool = False) -> nn.Module:
    """A settled :class:`ResNet`."""
    torch.manual_seed(0)
    return settle(ResNet(width, in_place=in_place), images())


def mlp(hidden: int = 16) -> nn.Module:
    """Two hidden layers on 6 inputs."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 3))


def vgg() -> nn.Module:
    """Three convolutions, pooling, flatten and a classifier, on 8 x 8 images."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(128, 5),
    )
    return settle(net, images())


class Concat(nn.Module):
    """Two convolutions side by side, concatenated, read by one; DenseNet's pattern."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.grow = nn.Conv2d(6, 6, 3, padding=1)
        self.join = nn.Conv2d(12, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([x, F.relu(self.grow(x))], 1)
        return self.fc(F.relu(self.join(x)).mean((2, 3)))


class Gated(nn.Module):
    """A pre-norm residual MLP with gate and up projections and no biases, as in Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.gate = nn.Linear(8, 20, bias=False)
        self.up = nn.Linear(8, 20, bias=False)
        self.down = nn.Linear(20, 8, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))


class Two(nn.Module):
    """One hidden layer, two readers with a result each."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 16)
        self.a = nn.Linear(16, 3)
        self.b = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.hidden(x))
        return self.a(h), self.b(h)


class Named(nn.Module):
    """An MLP whose input has a name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))

    def forward(self, features: Tensor) -> Tensor:
        return self.net(features)


class Masked(nn.Module):
    """Tokens through an MLP, and their mean over the positions that the mask leaves."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(6, 16)
        self.down = nn.Linear(16, 6)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        x = x + self.down(F.gelu(self.up(x)))
        return (x * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)


def _seeded(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind()


def concat() -> nn.Module:
    """A :class:`Concat` of fixed weights."""
    return _seeded(Concat)


def gated() -> nn.Module:
    """A :class:`Gated` of fixed weights."""
    return _seeded(Gated)


def two() -> nn.Module:
    """A :class:`Two` of fixed weights."""
    return _seeded(Two)


def settle_plain(model: nn.Module, x: Tensor) -> nn.Module:
    """The norms' statistics from data, without touching anything else; in eval mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(x)
    return model.eval()


class Inverted(nn.Module):
    """An inverted residual block as in MobileNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.expand = nn.Sequential(nn.Conv2d(6, 18, 1, bias=False), nn.BatchNorm2d(18), nn.ReLU6(inplace=True))
        self.depth = nn.Sequential(
            nn.Conv2d(18, 18, 3, padding=1, groups=18, bias=False), nn.BatchNorm2d(18), nn.ReLU6(inplace=True)
        )
        self.project = nn.Sequential(nn.Conv2d(18, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depth(self.expand(x)))
        return self.fc(x.mean((2, 3)))


def mobile() -> nn.Module:
    """A settled :class:`Inverted`."""
    return settle(_seeded(Inverted), images())
