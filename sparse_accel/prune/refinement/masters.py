"""The parameters that a refinement trains: full-precision twins of half-precision ones, zeros kept."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from sparse_accel.calibration.data import all_reduce_

FULL = (torch.float32, torch.float64)
BETAS = (0.9, 0.999)
EPS = 1e-8


class Masters:
    """Adam on a model's parameters, in float32 at least; removed weights stay zero.

    Embedding tables, and what is tied to them, stay as they are: the calibration inputs hold few of their rows.

    Args:
        model: whose parameters they are; while the context is open they have gradients.
        masks: True for kept weights, by name of the parameter.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        self.parameters = [p for p in model.parameters() if p.is_floating_point() and id(p) not in tables and p.numel()]
        named = dict(model.named_parameters(remove_duplicate=False))
        removed = {id(named[name]): ~mask.to(named[name].device) for name, mask in masks.items()}
        self.removed = [removed.get(id(p)) for p in self.parameters]
        self.values = [p.data if p.dtype in FULL else p.detach().float() for p in self.parameters]
        self.moments = [(torch.zeros_like(v), torch.zeros_like(v)) for v in self.values]
        self.count = 0

    @staticmethod
    def bytes_needed(model: nn.Module) -> int:
        """Bytes of gradients, moments, full-precision twins, the best weights and the first ones."""
        total = 0
        for parameter in model.parameters():
            full = max(4, parameter.element_size())
            total += parameter.numel() * (
                3 * parameter.element_size() + 3 * full + (full != parameter.element_size()) * full
            )
        return total

    @contextmanager
    def training(self) -> Iterator[None]:
        """The parameters require gradients; afterwards they are as before, with the gradients that they had."""
        before = [(p.requires_grad, p.grad) for p in self.parameters]
        try:
            for parameter in self.parameters:
                parameter.requires_grad_(True)
                parameter.grad = None
            yield
        finally:
            for parameter, (required, grad) in zip(self.parameters, before, strict=True):
                parameter.grad = None
                parameter.requires_grad_(required)
                parameter.grad = grad

    def size(self) -> float:
        """The root mean square of the weights that are not zero, in a median parameter of two or more dimensions."""
        sizes = []
        for value in self.values:
            if value.dim() >= 2:
                kept = value[value != 0].double()
                sizes.append(float(kept.square().mean().sqrt()) if kept.numel() else 0.0)
        sizes = sorted(size for size in sizes if 0 < size < math.inf)
        return sizes[len(sizes) // 2] if sizes else 1.0

    @torch.no_grad()
    def follow(self) -> None:
        """The full-precision twins get the values that the parameters have."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            if value.data_ptr() != parameter.data_ptr():
                value.copy_(parameter)

    def restart(self) -> None:
        """Adam begins anew."""
        self.count = 0
        for pair in self.moments:
            for moment in pair:
                moment.zero_()

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], lr: float) -> bool:
        """One step of Adam; False, and nothing has changed, where a gradient is not finite."""
        grads = [
            torch.zeros_like(value) if grad is None else grad.to(value.dtype)
            for grad, value in zip(gradients, self.values, strict=True)
        ]
        all_reduce_(grads)
        sizes = [grad.abs().amax() for grad in grads]
        if not math.isfinite(float(torch.stack([size.double().cpu() for size in sizes]).sum())):
            return False
        self.count += 1
        first, second = (1 - beta**self.count for beta in BETAS)
        for parameter, value, grad, removed, (mean, square) in zip(
            self.parameters, self.values, grads, self.removed, self.moments, strict=True
        ):
            if removed is not None:
                grad = grad.masked_fill(removed, 0)
            mean.lerp_(grad, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
            value.addcdiv_(mean, (square / second).sqrt_().add_(EPS), value=-lr / first)
            if value.data_ptr() != parameter.data_ptr():
                parameter.copy_(value)
        return True


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of torch, NumPy and Python from a seed; the caller's go on afterwards as if nothing had been."""
    cuda = [device] if device.type == "cuda" else []
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (a user's function may draw from it)
    with torch.random.fork_rng(cuda):
        try:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every other device, too
            for own in cuda:
                torch.cuda.default_generators[own.index or 0].manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
