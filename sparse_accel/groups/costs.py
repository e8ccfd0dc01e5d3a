"""How often a forward pass multiplies by each weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.wrappers import bare_model


def multiplications(model: nn.Module, example: Any) -> dict[nn.Parameter, float]:
    """For the weights of Linear, convolution and HF Conv1D layers: multiplications by one element in a forward pass.

    The multiplications of a layer are that times its weight's elements. The model runs once, without gradients and in
    eval mode, and is left in the mode of every module.

    Args:
        model: a module, or a wrapper that has it inside.
        example: its input: a tensor, a tuple of arguments, or a mapping of keyword arguments.

    Raises:
        TypeError: ``example`` is none of these.

    Example:
        >>> net = nn.Conv2d(1, 2, 3)
        >>> multiplications(net, torch.zeros(5, 1, 4, 4))[net.weight]
        20.0
    """
    model = bare_model(model)
    counts: dict[nn.Parameter, float] = {}
    handles = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Any = module.weight
        if isinstance(module, nn.modules.conv._ConvNd):
            times = (
                inputs[0].numel() / module.in_channels if module.transposed else output.numel() / module.out_channels
            )
        else:
            times = inputs[0].numel() / inputs[0].shape[-1]
        counts[weight] += times

    modes = {module: module.training for module in model.modules()}
    for module in model.modules():
        own = type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")
        if own or isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            weight: Any = module.weight
            counts[weight] = 0.0
            handles.append(module.register_forward_hook(count))
    try:
        model.eval()
        with torch.no_grad():
            if isinstance(example, Tensor):
                model(example)
            elif isinstance(example, tuple):
                model(*example)
            elif isinstance(example, Mapping):
                model(**example)
            else:
                raise TypeError(f"example: expected a tensor, a tuple or a mapping, got {type(example).__name__}")
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return counts
