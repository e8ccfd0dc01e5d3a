"""What modules are shown in a pass over the data: the shapes of their inputs, beside the masks of the batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparse_accel.channels.call import tree_tensors
from sparse_accel.channels.containers import output_tensors

EXAMPLES = 8
Call = tuple[str, int]  # a module's name ("" for the model's outputs) and the number of its call


class Masks(Protocol):
    """Which masks there are: :class:`sparse_accel.calibration.padding.Padding`.

    Attributes:
        keys: of the masks.
    """

    keys: list[str]

    def masks_of(self, batch: Any) -> dict[str, Tensor]:
        """The masks of a batch, bool [batch, length], by key."""


class Observations:
    """The shapes of what modules are shown in a pass, with the masks of the batches.

    Args:
        padding: says which masks.
        modules: to watch, by name.
        outputs: whether to watch the model's outputs, too.

    Attributes:
        shapes: of the inputs of each call, each with the masks that were there.
        masked: some batches with masks, of different shapes.
        rivals: by mask, the inputs beside the masks that could have its positions in every batch.
    """

    def __init__(self, padding: Masks, modules: Mapping[str, nn.Module], *, outputs: bool = False) -> None:
        self.padding, self.modules, self.outputs = padding, modules, outputs
        self.shapes: dict[Call, list[tuple[torch.Size, Mapping[str, Tensor]]]] = {}
        self.masked: list[Any] = []
        self.rivals: dict[str, set[str]] = {}
        self._masks: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}
        self._known: set[Any] = set()
        self._examples: set[Any] = set()

    def begin(self, batch: Any) -> None:
        """A batch begins."""
        self._calls = {}
        self._masks = {
            key: torch.empty(mask.shape, device="meta") for key, mask in self.padding.masks_of(batch).items()
        }
        if not self._masks:
            return
        shapes = tuple((key, tuple(mask.shape)) for key, mask in self._masks.items())
        if shapes not in self._examples and len(self.masked) < EXAMPLES:
            self._examples.add(shapes)
            self.masked.append(batch)
        others = {key: t.shape[:2] for key, t in batch.items() if key not in self._masks and isinstance(t, Tensor)}
        for key, mask in self._masks.items():
            own = {name for name, shape in others.items() if shape in (mask.shape, mask.shape[::-1])}
            self.rivals[key] = self.rivals.get(key, own) & own

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[Observations]:
        """Hooks on the modules, and on the model."""
        if not self.padding.keys:
            yield self
            return

        def hook_of(name: str) -> Any:
            def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
                x = next(tree_tensors((args, kwargs)), None)
                if x is not None:
                    self._note(name, self._calls.get(name, 0), x.shape)
                    self._calls[name] = self._calls.get(name, 0) + 1

            return hook

        def outputs(_module: nn.Module, _args: Any, output: Any) -> None:
            for number, tensor in enumerate(floating(output)):
                self._note("", number, tensor.shape)

        handles = [m.register_forward_pre_hook(hook_of(n), with_kwargs=True) for n, m in self.modules.items() if n]
        if self.outputs:
            handles.append(model.register_forward_hook(outputs))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, name: str, call: int, shape: torch.Size) -> None:
        key = (name, call, shape, tuple((mask, tuple(own.shape)) for mask, own in self._masks.items()))
        if key not in self._known:
            self._known.add(key)
            self.shapes.setdefault((name, call), []).append((shape, self._masks))


def floating(output: Any) -> list[Tensor]:
    """The floating-point tensors of a model's output that are not empty."""
    return [tensor for tensor in output_tensors(output) if tensor.is_floating_point() and tensor.numel()]
