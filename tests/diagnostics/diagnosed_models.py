"""Networks, data and checks for the diagnostics."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LABELS = 4


class Conv(nn.Module):
    """Convolutions with BatchNorm, a depthwise one among them, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, groups=6)
        self.conv2 = nn.Conv2d(6, 9, 3, bias=False)
        self.linear1, self.linear2 = nn.Linear(36, 11), nn.Linear(11, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(F.relu(self.norm1(self.conv1(x))))
        x = F.relu(self.conv2(x)).flatten(1)
        return self.linear2(torch.tanh(self.linear1(x)))


class Gated(nn.Module):
    """A gated hidden layer: two layers make its units."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(12, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class GatedTwice(nn.Module):
    """Two gated layers, one after the other; the second makes gates and values with one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(5, 9), nn.Linear(5, 9)
        self.both, self.down = nn.Linear(9, 14), nn.Linear(7, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.gate(x)) * self.up(x)
        gates, values = self.both(x).chunk(2, -1)
        return self.down(torch.sigmoid(gates) * values)


def transposed() -> nn.Sequential:
    """A transposed convolution behind three others."""
    return nn.Sequential(
        nn.Unflatten(1, (5, 1)), nn.Conv1d(5, 6, 1), nn.ReLU(), nn.ConvTranspose1d(6, 7, 2), nn.ReLU(),
        nn.ConvTranspose1d(7, 2, 1, stride=1), nn.Flatten(),
    )  # fmt: skip


class Residual(nn.Module):
    """A stream to which a hidden layer adds."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.up, self.down, self.leave = (
            nn.Linear(5, 10), nn.Linear(10, 16), nn.Linear(16, 10), nn.Linear(10, LABELS),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(x + self.down(F.relu(self.up(x))))


def mlp(*widths: int, bias: bool = True) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them, from 5 inputs to the labels."""
    sizes = (5, *widths, LABELS)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def shaken(model: nn.Module, seed: int) -> nn.Module:
    """The model with other parameters, and buffers as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.num_batches_tracked += 7
    return model


def samples(model: nn.Module, count: int = 40) -> tuple[Tensor, Tensor]:
    """Inputs and labels for one of the networks above."""
    generator = torch.Generator().manual_seed(5)
    shape = (count, 1, 6, 6) if isinstance(model, Conv) else (count, 5)
    return torch.randn(shape, generator=generator), torch.randint(LABELS, (count,), generator=generator)


def _everything(model: nn.Module) -> list[object]:
    """All that a diagnostic may not touch."""
    found: list[object] = []
    for name, module in model.named_modules():
        hooks = [{key: list(own.items()) for key, own in vars(module).items() if key.endswith("_hooks") and own}]
        found += [name, id(module), module.training, hooks, sorted(vars(module))]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        grad = None if tensor.grad is None else (id(tensor.grad), tensor.grad.numpy().tobytes())
        values = tensor.detach().numpy().tobytes()
        found += [name, id(tensor), tensor.data_ptr(), tensor._version, values, tensor.requires_grad, grad]
    return found


def _random_states() -> list[object]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return [torch.get_rng_state().numpy().tobytes(), kind, keys.tobytes(), rest, random.getstate()]


@contextmanager
def unchanged(*models: nn.Module) -> Iterator[None]:
    """Fail where models, random numbers or gradient mode differ afterwards."""
    before = [_everything(model) for model in models], _random_states(), torch.is_grad_enabled()
    yield
    assert ([_everything(model) for model in models], _random_states(), torch.is_grad_enabled()) == before


def prepared(model: nn.Module) -> nn.Module:
    """In train mode but for one module, with gradients, a frozen parameter, and hooks of its own."""
    model.train()
    parameters = list(model.parameters())
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, number)
    parameters[0].requires_grad_(False)
    last = list(model.modules())[-1]
    last.eval()
    last.register_forward_hook(lambda *_: None)
    last.register_forward_pre_hook(lambda *_: None)
    return model
