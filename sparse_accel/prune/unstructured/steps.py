"""The layers of a model in the order of its forward pass, those that read the same inputs together."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparse_accel.calibration.batches import Batches
from sparse_accel.calibration.data import Calibration
from sparse_accel.calibration.observations import Observations
from sparse_accel.calibration.ranks import of_all, together
from sparse_accel.calibration.slices import SliceCall
from sparse_accel.calibration.survey import survey
from sparse_accel.channels.call import tree_tensors
from sparse_accel.prune.unstructured.layers import Layer, StackedLayer, Step
from sparse_accel.prune.unstructured.selection import Selection
from sparse_accel.prune.unstructured.stacked import called_module, stacked, watch_stacks

logger = logging.getLogger("sparse_accel")

HELD_OUT_EVERY = 8


def find_steps(
    model: nn.Module, calibration: Calibration, selection: Selection, seen: Observations | None = None
) -> tuple[list[Step], dict[nn.Module, list[int]]]:
    """The layers in the order of the forward pass, those with the same inputs together, over all batches of all ranks.

    Layers that no batch reaches are left out: an error where they were named, else noted in ``selection.left``.

    Args:
        model: the model.
        calibration: the data.
        selection: the layers.
        seen: to be shown the batches and the inputs.

    Returns:
        The steps, and the modules that every batch of this rank calls exactly once, each with when the first batch did.

    Raises:
        ValueError: a named layer is not called, or none is.
    """
    with together(selection.layers[0].weight.device):
        own, order = _watch(model, calibration, selection, seen)
    ranks = of_all(own)
    names = merged([sequence for rank in ranks for sequence in rank.sequences])
    faults = {name: fault for rank in ranks for name, fault in rank.faults.items()}
    for stack in stacked(selection.layers):
        if stack.name in faults or stack.name not in names:
            names = [name for name in names if name != stack.name]
            selection.leave(stack, faults.get(stack.name, "no product with its matrices in the forward pass"))
    for layer in selection.layers:
        if layer.name not in names:
            reason = "the forward pass does not call it for any calibration batch"
            if selection.explicit:
                raise ValueError(f"targets: {layer.where}: {reason}")
            leave(layer, reason, selection)
    layers = {layer.name: layer for layer in selection.layers}
    steps: dict[tuple[Any, ...], Step] = {}
    for name in names:
        counts = {count for rank in ranks for count in rank.counts.get(name, {0})}
        step = steps.setdefault(
            tuple(rank.leaders.get(name) for rank in ranks), Step([], min(counts) if len(counts) == 1 else 0)
        )
        step.layers.append(layers[name])
        if isinstance(layers[name], StackedLayer):
            owners = layers[name].modules.values()
            step.calls = 1 if len(owners) == 1 and all(module in order for module in owners) else 0
    if not steps:
        raise ValueError("model: the forward pass calls none of the layers to prune")
    return list(steps.values()), order


def leave(layer: Layer, reason: str, selection: Selection) -> None:
    """Note that a layer stays dense."""
    selection.layers = [other for other in selection.layers if other is not layer]
    selection.left[layer.name] = reason
    logger.warning("%s is left dense: %s", layer.where, reason)


@dataclass
class _Calls:
    """What one rank's batches call, in plain values.

    Attributes:
        sequences: layers in the order of their first calls, every order that a batch has.
        leaders: by layer the first that reads the same inputs in all batches.
        counts: by layer how often a batch calls it, every number that occurs.
        faults: stacks that are used otherwise than in products of whole matrices, with how.
    """

    sequences: list[tuple[str, ...]]
    leaders: dict[str, str]
    counts: dict[str, set[int]]
    faults: dict[str, str]


def _watch(
    model: nn.Module, calibration: Calibration, selection: Selection, seen: Observations | None
) -> tuple[_Calls, dict[nn.Module, list[int]]]:
    inputs: dict[str, list[tuple[Any, ...]]] = {}
    batches: list[dict[str, int]] = []
    tokens = _Tokens()

    def hook_of(layer: Layer) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = next(tree_tensors((args, kwargs)), None)
            if x is None:
                raise ValueError(f"{layer.where}: is called without a tensor")
            inputs.setdefault(layer.name, []).append((tokens.of(x), *layer.geometry(module)))
            batches[-1][layer.name] = batches[-1].get(layer.name, 0) + 1

        return hook

    def product(layer: StackedLayer, call: SliceCall) -> None:
        inputs.setdefault(layer.name, []).append((tokens.of(call.inputs), "slices", call.slices))
        batches[-1][layer.name] = batches[-1].get(layer.name, 0) + 1

    def begin(batch: Any) -> None:
        batches.append({})
        if seen is not None:
            seen.begin(batch)

    handles = [
        module.register_forward_pre_hook(hook_of(layer), with_kwargs=True)
        for layer in selection.layers
        if not isinstance(layer, StackedLayer)
        for module in layer.modules.values()
    ]
    try:
        with (
            nullcontext() if seen is None else seen.watching(model),
            watch_stacks(model, selection.layers, product, calibration),
        ):
            found = survey(model, calibration, begin)
    finally:
        for handle in handles:
            handle.remove()
    stacks = stacked(selection.layers)
    for stack in stacks:
        called_module(model, stack, {module for module, most in found.most.items() if most})
    first: dict[tuple[Any, ...], str] = {}
    sequences = list(dict.fromkeys(tuple(batch) for batch in batches))
    leaders = {name: first.setdefault(tuple(inputs[name]), name) for name in merged(sequences)}
    counts = {name: {batch.get(name, 0) for batch in batches} for name in inputs}
    faults = {stack.name: stack.fault for stack in stacks if stack.fault is not None}
    return _Calls(sequences, leaders, counts, faults), found.once()


def merged(sequences: Sequence[Sequence[str]]) -> list[str]:
    """One order of all names: what is new in a sequence comes right after what is before it there.

    Example:
        >>> merged([("stem", "a", "head"), ("stem", "b", "head"), ("early",)])
        ['early', 'stem', 'b', 'a', 'head']
    """
    out: list[str] = []
    for sequence in dict.fromkeys(map(tuple, sequences)):
        at = 0
        for name in sequence:
            if name in out:
                at = out.index(name) + 1
            else:
                out.insert(at, name)
                at += 1
    return out


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


def split(data: Batches, held_out: Batches | None, *, rounds: int) -> tuple[Batches, Batches]:
    """What to learn from, and what to compare rounds on: given, or every eighth batch, or the same if there is but one.

    Args:
        data: the calibration data.
        held_out: to compare on, if given.
        rounds: that will be compared; without any nothing is set aside.
    """
    if held_out is not None:
        return data, held_out
    if not rounds or len(data.prints) < 2:
        return data, data
    train = data.part(lambda number: number % HELD_OUT_EVERY != 1)
    return train, data.part(lambda number: number % HELD_OUT_EVERY == 1)
