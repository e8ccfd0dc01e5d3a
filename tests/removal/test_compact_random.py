"""Random small nets with random zeros: the same outputs after compaction, and after loading into a fresh model."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from compact_checks import assert_unchanged, snapshot, widths
from compact_models import randomize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparse_accel.diagnostics.sparsity import sparsity
from sparse_accel.removal.checkpoint import load, save
from sparse_accel.removal.compact import compact

ACTIVATIONS = (F.relu, torch.tanh, F.gelu, F.silu, torch.sigmoid, F.relu6)
Step = tuple[str, int, int, bool]  # operation, a number, another, a flag


class RandomNet(nn.Module):
    """Runs a list of steps; every number of a step is taken modulo what makes sense where it stands."""

    def __init__(self, steps: list[Step], channels: int, head: str) -> None:
        super().__init__()
        self.steps, self.head = steps, head
        self.layers = nn.ModuleDict()
        width = channels
        widths = []
        for index, (kind, number, other, flag) in enumerate(steps):
            name, out = str(index), 2 + number % 5
            if kind in ("conv", "cat", "transposed"):
                groups = 2 if flag and width % 2 == 0 and other % 2 else 1
                out *= groups
                if kind == "transposed":
                    self.layers[name] = nn.ConvTranspose2d(
                        width, out, 1 + other % 2, groups=groups, bias=number % 2 == 0
                    )
                else:
                    size, mode = (3, ("zeros", "reflect")[other % 2]) if flag else (1, "zeros")
                    self.layers[name] = nn.Conv2d(
                        width, out, size, padding=size // 2, groups=groups, bias=other % 3 > 0, padding_mode=mode
                    )
                width = width + out if kind == "cat" else out
            elif kind == "depthwise":
                self.layers[name] = nn.Conv2d(width, width * (1 + number % 2), 3, padding=1, groups=width, bias=flag)
                width *= 1 + number % 2
            elif kind in ("residual", "twice"):
                self.layers[name] = nn.Conv2d(width, width, 1 + 2 * (number % 2), padding=number % 2, bias=flag)
            elif kind == "norm":
                self.layers[name] = nn.BatchNorm2d(width, affine=flag)
            elif kind == "gate":
                self.layers[name] = nn.Linear(width, width)
            elif kind == "halves":
                self.layers[name] = nn.Conv2d(width, 2 * out, 1)
                width = out
            widths.append(width)
        self.final: nn.Module = nn.Linear(width * (36 if head == "flatten" else 1), 3)
        if head == "conv":
            self.final = nn.Conv2d(width, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        for index, (kind, number, other, flag) in enumerate(self.steps):
            layer: Any = self.layers[str(index)] if str(index) in self.layers else None  # noqa: SIM401
            if kind in ("conv", "transposed", "depthwise", "norm"):
                x = layer(x)
            elif kind == "cat":
                x = torch.cat([x, layer(x)] if number % 2 else [layer(x), x], 1)
            elif kind == "residual":
                x = x + layer(F.relu(x)) if flag else layer(x).add_(x)
            elif kind == "twice":
                x = torch.tanh(layer(torch.tanh(layer(x))))
            elif kind == "gate":
                x = x * torch.sigmoid(layer(x.mean((2, 3))))[..., None, None]
            elif kind == "halves":
                value, gate = layer(x).chunk(2, 1)
                x = value * torch.sigmoid(gate)
            elif kind == "pool" and min(x.shape[2:]) > 4:
                pool = F.max_pool2d if number % 2 else F.avg_pool2d
                x = pool(x, 3, 1, other % 2)
            elif kind == "resize" and max(x.shape[2:]) < 12:
                x = F.interpolate(x, scale_factor=2) if flag else F.dropout(x, 0.5, self.training)
            else:
                x = ACTIVATIONS[number % len(ACTIVATIONS)](x)
        if x.shape[2:] != (6, 6):
            x = F.adaptive_avg_pool2d(x, 6)
        if self.head == "conv":
            return self.final(x)
        return self.final(x.flatten(1) if self.head == "flatten" else x.mean((2, 3)))


KINDS = (
    "conv",
    "act",
    "norm",
    "cat",
    "residual",
    "twice",
    "depthwise",
    "transposed",
    "gate",
    "halves",
    "pool",
    "resize",
)
STEPS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 9), st.booleans()), min_size=1, max_size=8
)


def plant(model: nn.Module, seed: int, share: float) -> None:
    """Zero random input channels, and random filters with a zero, negative or positive bias."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
                continue
            first, second = module.weight.shape[:2]
            tail = [1] * (module.weight.dim() - 2)
            module.weight *= (draw(1, second) >= share).reshape(1, second, *tail)
            rows = draw(first) < share
            if isinstance(module, nn.modules.conv._ConvTransposeNd):
                module.weight *= ~rows.reshape(first, 1, *tail)
                continue
            module.weight *= ~rows.reshape(first, 1, *tail)
            if module.bias is not None:
                biases = torch.tensor([0.0, -0.5, 0.5], dtype=module.bias.dtype)
                values = biases[torch.randint(0, 3, (first,), generator=generator)]
                module.bias.copy_(torch.where(rows, values, module.bias))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    STEPS,
    st.integers(1, 4),
    st.sampled_from(("flatten", "mean", "conv")),
    st.integers(0, 99),
    st.sampled_from((0.2, 0.5, 0.8)),
)
def test_random_nets(steps: list[Step], channels: int, head: str, seed: int, share: float) -> None:
    model = randomize(RandomNet(steps, channels, head), seed).double()
    plant(model, seed, share)
    example = torch.randn(2, channels, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = snapshot(model)
    result = compact(model, example, optimizer=optimizer)
    assert_unchanged(model, before)
    fresh_input = 2 * torch.randn(
        3, channels, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1)
    )
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(fresh_input)
        came = copy.deepcopy(result.model).eval()(fresh_input)
    torch.testing.assert_close(came, expected, rtol=1e-9, atol=1e-9 * max(1.0, float(expected.abs().max())))
    with tempfile.TemporaryDirectory() as directory:
        save(result, directory)
        loaded = load(directory, RandomNet(steps, channels, head))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(fresh_input), came)
    again = compact(result.model, example)
    assert again.report.params[1] <= again.report.params[0] == result.report.params[1] <= result.report.params[0]
    assert all(min(pair) >= 1 for pair in widths(result.model).values())
    assert 0 <= sparsity(result.model).group_sparsity <= 1
