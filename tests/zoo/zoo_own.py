"""Small models of our own, of the kinds that break tools: gates, heads, routing, recurrence, odd outputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Made = tuple[nn.Module, list[Any]]


def images(*shape: int, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


class Gated(nn.Module):
    """An inverted residual with squeeze-and-excitation, as EfficientNet has it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.squeeze, self.excite = nn.Conv2d(hidden, 4, 1), nn.Conv2d(4, hidden, 1)
        self.project, self.norm3 = nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm2(self.depthwise(F.silu(self.norm1(self.expand(x))))))
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(h.mean((2, 3), keepdim=True)))))
        return x + self.norm3(self.project(h * gate))


class SEResidual(nn.Module):
    """A residual block whose sum is gated by linear layers, as SENet has it."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, inner, 3, padding=1), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, width, 3, padding=1), nn.BatchNorm2d(width)
        self.down, self.up = nn.Linear(width, 4), nn.Linear(4, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        gate = torch.sigmoid(self.up(F.relu(self.down(h.mean((2, 3))))))
        return F.relu(x + h * gate[:, :, None, None])


def _pooled(*layers: nn.Module, width: int, classes: int = 3) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class Detector(nn.Module):
    """DETR-like: a set of boxes and classes, auxiliary outputs of every layer, in a namespace."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.queries = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(5, 16))
        self.layers = nn.ModuleList(nn.TransformerDecoderLayer(16, 2, 24, batch_first=True) for _ in range(2))
        self.classes = nn.Linear(16, 4)
        self.boxes = nn.Sequential(nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 4))

    def forward(self, x: Tensor) -> SimpleNamespace:
        memory = self.stem(x).flatten(2).transpose(1, 2)
        h = self.queries.expand(len(x), -1, -1)
        outputs: deque[SimpleNamespace] = deque()
        for layer in self.layers:
            h = layer(h, memory)
            outputs.append(SimpleNamespace(logits=self.classes(h), boxes=self.boxes(h).sigmoid()))
        return SimpleNamespace(last=outputs.pop(), aux=outputs)


class Experts(nn.Module):
    """A mixture of listed experts; tokens go to the one of the largest score."""

    def __init__(self, width: int = 12, hidden: int = 20, experts: int = 3) -> None:
        super().__init__()
        self.stem, self.router = nn.Linear(width, width), nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in range(experts)
        )
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x))
        scores = self.router(h).softmax(-1)
        best, y = scores.argmax(-1), torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            chosen = best == number
            if bool(chosen.any()):
                y[chosen] = expert(h[chosen]) * scores[chosen][:, number, None]
        return self.out(h + y)


class Recurrent(nn.Module):
    """A cell of linear layers, called as often as the input is long."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.state, self.out = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 16)
        for step in x.unbind(1):
            h = torch.tanh(self.read(step) + self.state(h))
        return self.out(h)


class EarlyExit(nn.Module):
    """Stops at the first block that is sure of the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU()) for _ in range(3)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
            if float(x.detach().abs().mean()) > 1.1:
                break
        return self.head(x)


class MultiTask(nn.Module):
    """Two heads, of which forward runs one; encode is a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())
        self.first, self.second = nn.Linear(16, 3), nn.Linear(16, 5)

    def encode(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor, task: str = "first") -> Tensor:
        return getattr(self, task)(self.encode(x))


class Looped(nn.Module):
    """One block's weights, run three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 12)
        self.block = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        h, states = self.stem(x), []
        for _ in range(3):
            h = h + self.block(h)
            states.append(h)
        return {"logits": [self.out(h)], "states": states[-1:]}


class UNet(nn.Module):
    """Skip connections by concatenation and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, 2, 1)
        self.middle, self.up = nn.Conv2d(12, 12, 3, padding=1), nn.ConvTranspose2d(12, 8, 2, 2)
        self.merge, self.out = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.middle(F.relu(self.down2(a))))
        return self.out(F.relu(self.merge(torch.cat([a, F.relu(self.up(b))], 1))))


class Padded(nn.Module):
    """nn.TransformerEncoder with a padding mask, on which torch has a fast path."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.embed, self.encoder, self.out = nn.Linear(6, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        h = self.encoder(self.embed(x), src_key_padding_mask=padding)
        return self.out(h.masked_fill(padding[..., None], 0).mean(1))


def _padded() -> Made:
    padding = torch.zeros(4, 6, dtype=torch.bool)
    padding[-1, 4:] = True
    return Padded(), [(x, padding) for x in images(4, 6, 6)]


def _made(build: Callable[[], nn.Module], *shape: int, lengths: tuple[int, ...] = ()) -> Callable[[], Made]:
    def make() -> Made:
        torch.manual_seed(0)
        model = build()
        if lengths:
            return model, [images(shape[0], length, *shape[1:], count=1)[0] for length in lengths]
        return model, images(*shape)

    return make


def _exits() -> Made:
    torch.manual_seed(0)
    scales = (0.2, 3.0, 0.6)
    return EarlyExit(), [scale * x for scale, x in zip(scales, images(16, 8), strict=True)]


OWN: dict[str, Callable[[], Made]] = {
    "efficientnet": _made(lambda: _pooled(nn.Conv2d(3, 8, 3, 2, 1), Gated(8, 24), Gated(8, 24), width=8), 4, 3, 16, 16),
    "senet": _made(
        lambda: _pooled(nn.Conv2d(3, 8, 3, 2, 1), SEResidual(8, 12), SEResidual(8, 12), width=8), 4, 3, 16, 16
    ),
    "detector": _made(Detector, 3, 3, 16, 16),
    "experts": _made(Experts, 24, 12),
    "recurrent": _made(Recurrent, 8, 6, lengths=(3, 7, 5)),
    "early_exit": _exits,
    "multi_task": _made(MultiTask, 16, 8),
    "looped": _made(Looped, 16, 8),
    "unet": _made(UNet, 3, 3, 8, 8),
    "padded_encoder": _padded,
    "mlp": _made(
        lambda: nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)), 32, 8
    ),
    "grouped": _made(
        lambda: _pooled(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.ReLU(), width=16),
        4,
        3,
        12,
        12,
    ),
    "sequence_conv": _made(
        lambda: nn.Sequential(
            nn.Conv1d(4, 16, 3),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Conv1d(16, 12, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(96, 3),
        ),
        4,
        4,
        12,
    ),
    "volume_conv": _made(
        lambda: nn.Sequential(
            nn.Conv3d(1, 8, 3), nn.ReLU(), nn.Conv3d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
        ),
        3,
        1,
        6,
        6,
        6,
    ),
    "generator": _made(
        lambda: nn.Sequential(
            nn.Linear(6, 64),
            nn.ReLU(),
            nn.Unflatten(1, (16, 2, 2)),
            nn.ConvTranspose2d(16, 12, 4, 2, 1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.ConvTranspose2d(12, 3, 4, 2, 1),
            nn.Tanh(),
        ),
        4,
        6,
    ),
}
