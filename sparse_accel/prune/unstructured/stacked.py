"""Layers that are slices of one parameter: the experts of a mixture, each against the inputs that are routed to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from sparse_accel.calibration.batches import Batches
from sparse_accel.calibration.data import Calibration
from sparse_accel.calibration.replay.front import Front
from sparse_accel.calibration.slice_moments import SliceGram
from sparse_accel.calibration.slices import SliceCall, watch_slices
from sparse_accel.prune.unstructured.layers import Layer, StackedLayer


def stacked(layers: Sequence[Layer]) -> list[StackedLayer]:
    """Those of the layers that are stacks."""
    return [layer for layer in layers if isinstance(layer, StackedLayer)]


def watch_stacks(
    model: nn.Module, layers: Sequence[Layer], visit: Callable[[StackedLayer, SliceCall], None], batches: Calibration
) -> AbstractContextManager[None]:
    """Runs of the model inside show every product of the stacks among some layers to ``visit``.

    A use that is no product of whole slices is noted in :attr:`StackedLayer.fault`.
    """
    found = {layer.name: layer for layer in stacked(layers)}

    def seen(call: SliceCall) -> None:
        layer = found[call.name]
        layer.saw(call)
        if layer.fault is None:
            visit(layer, call)

    def fault(name: str, why: str) -> None:
        found[name].fault = found[name].fault or why

    parameters = {name: layer.weight for name, layer in found.items()}
    return watch_slices(model, parameters, seen, fault, batches.padded if isinstance(batches, Batches) else None)


def stacked_hessian(
    front: Front, batches: Batches, layer: StackedLayer, dtype: torch.dtype, *, calls: int
) -> SliceGram:
    """``X Xᵀ`` of the inputs that each slice gets over all batches (of this rank).

    Raises:
        ValueError: a batch shows that the parameter is no stack of matrices.
    """
    slices, _, features = layer.shape
    grams: list[SliceGram] = []

    def restart() -> None:
        grams[:] = [SliceGram(slices, features, dtype=dtype, device=layer.weight.device)]

    restart()
    with watch_stacks(front.model, [layer], lambda _, call: grams[0].update(call), batches):
        front.stream(batches, layer.modules, lambda name, x, output: None, restart, calls=calls)
    if layer.fault is not None:
        raise ValueError(f"{layer.where}: {layer.fault}: expected products with its matrices alone; name it in skip")
    return grams[0]


def called_module(model: nn.Module, layer: StackedLayer, called_ones: set[nn.Module]) -> None:
    """Let the modules that stand for a layer in passes be called: its owners, or what is around them."""
    modules: dict[str, Any] = dict(model.named_modules())
    called = {}
    for name in layer.modules:
        while modules[name] not in called_ones and name:
            name = name.rpartition(".")[0]
        called[name] = modules[name]
    layer.modules = called
