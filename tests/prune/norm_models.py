"""Blocks with global response normalization, written in the ways in which it is found."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Last(nn.Module):
    """Channels last, parameters ``[1, 1, 1, C]``: that of transformers, and of the authors."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.randn(1, 1, 1, channels)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        g = torch.linalg.vector_norm(x, ord=2, dim=(1, 2), keepdim=True)
        return self.weight * (x * (g / (g.mean(dim=-1, keepdim=True) + 1e-6))) + self.bias + x


class First(nn.Module):
    """Channels first, parameters ``[C]``: that of timm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias, self.weight = (nn.Parameter(torch.randn(channels)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        g = x.norm(p=2, dim=tuple(range(2, x.dim())), keepdim=True)
        shape = (1, -1, *[1] * (x.dim() - 2))
        return x + torch.addcmul(
            self.bias.view(shape), self.weight.view(shape), x * (g / (g.mean(1, keepdim=True) + 1e-6))
        )


class Block(nn.Module):
    """ConvNeXt V2's: depthwise, expansion, activation, response norm, projection, addition."""

    def __init__(self, width: int = 6, hidden: int = 16, norm: str = "last", act=F.gelu) -> None:
        super().__init__()
        self.depthwise, self.act = nn.Conv2d(width, width, 3, padding=1, groups=width), act
        self.last = norm == "last"
        if self.last:
            self.expand, self.project = nn.Linear(width, hidden), nn.Linear(hidden, width)
        else:
            self.expand, self.project = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)
        self.norm = Last(hidden) if self.last else First(hidden)

    def forward(self, x: Tensor) -> Tensor:
        h = self.depthwise(x)
        if self.last:
            return x + self.project(self.norm(self.act(self.expand(h.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return x + self.project(self.norm(self.act(self.expand(h))))


def convnext(blocks: int = 2, **options) -> nn.Module:
    torch.manual_seed(0)
    body = [Block(**options) for _ in range(blocks)]
    return nn.Sequential(nn.Conv2d(3, 6, 3), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


def pictures(count: int = 40, seed: int = 1) -> Tensor:
    x = torch.randn(count, 3, 7, 7, generator=torch.Generator().manual_seed(seed))
    return x * torch.linspace(0.3, 2, count)[:, None, None, None]
