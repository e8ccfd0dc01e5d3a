"""The layers of a model in the order of its forward pass, those that read the same inputs together."""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.calibration.data import Calibration, stream
from sparse_accel.calibration.slices import SliceCall
from sparse_accel.channels.call import tree_tensors
from sparse_accel.prune.unstructured.layers import Layer, StackedLayer, Step
from sparse_accel.prune.unstructured.selection import Selection
from sparse_accel.prune.unstructured.stacked import called_module, stacked, watch_stacks

logger = logging.getLogger("sparse_accel")


def find_steps(
    model: nn.Module, calibration: Calibration, selection: Selection
) -> tuple[list[Step], dict[nn.Module, list[int]]]:
    """The layers in the order of the forward pass, those with the same inputs together.

    The first batch decides. Layers that it does not reach are left out: an error where they were named, else noted in
    ``selection.left``.

    Returns:
        The steps, and for every module when it was called.

    Raises:
        ValueError: a named layer is not called, or none is.
    """
    calls: dict[str, list[tuple[Any, ...]]] = {}
    order: dict[nn.Module, list[int]] = {}
    tokens = _Tokens()
    clock = itertools.count()

    def hook_of(layer: Layer) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = next(tree_tensors((args, kwargs)), None)
            if x is None:
                raise ValueError(f"{layer.where}: is called without a tensor")
            calls.setdefault(layer.name, []).append((tokens.of(x), *layer.geometry(module)))

        return hook

    def product(layer: StackedLayer, call: SliceCall) -> None:
        calls.setdefault(layer.name, []).append((tokens.of(call.inputs), "slices", call.slices))

    handles = [
        module.register_forward_pre_hook(hook_of(layer), with_kwargs=True)
        for layer in selection.layers
        if not isinstance(layer, StackedLayer)
        for module in layer.modules.values()
    ]
    handles += [
        module.register_forward_pre_hook(lambda module, args: order.setdefault(module, []).append(next(clock)))
        for module in model.modules()
    ]
    try:
        with watch_stacks(model, selection.layers, product, calibration):
            stream(model, _First(calibration), {"model": model}, lambda name, x, output: None)
    finally:
        for handle in handles:
            handle.remove()
    for stack in stacked(selection.layers):
        called_module(model, stack, order)
        if stack.fault is not None or stack.name not in calls:
            calls.pop(stack.name, None)
            selection.leave(stack, stack.fault or "no product with its matrices in the forward pass")
    for layer in selection.layers:
        if layer.name not in calls:
            reason = "the forward pass does not call it"
            if selection.explicit:
                raise ValueError(f"targets: {layer.where}: {reason}")
            selection.left[layer.name] = reason
            logger.warning("%s is left dense: %s", layer.where, reason)
    steps: dict[tuple[Any, ...], Step] = {}
    layers = {layer.name: layer for layer in selection.layers}
    for name, inputs in calls.items():
        step = steps.setdefault(tuple(inputs), Step([], len(inputs)))
        step.layers.append(layers[name])
        if isinstance(layers[name], StackedLayer):
            step.calls = sum(len(order[module]) for module in layers[name].modules.values())
    if not steps:
        raise ValueError("model: the forward pass calls none of the layers to prune")
    return list(steps.values()), order


class _First(Calibration):
    """The first batch alone."""

    def batches(self, device: torch.device | str | None = None) -> Iterator[Any]:
        yield next(iter(super().batches(device)))


class _Tokens:
    """Numbers for tensors: the same number for the same tensor with the same contents, without keeping it."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        self._next = 0

    def of(self, x: Tensor) -> int:
        seen = self._seen.get(id(x))
        version = 0 if x.is_inference() else x._version
        if seen is None or seen[0]() is not x or seen[1] != version:
            self._next += 1
            seen = self._seen[id(x)] = (weakref.ref(x), version, self._next)
        return seen[2]


def modules_of(layers: Sequence[Layer]) -> set[nn.Module]:
    """Every module that applies one of the layers."""
    return {module for layer in layers for module in layer.modules.values()}
