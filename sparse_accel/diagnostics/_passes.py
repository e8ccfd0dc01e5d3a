"""Passes over data that leave everything as it was: the model's loss, and what its layers are shown."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparse_accel.calibration.data import device_of, to_device
from sparse_accel.channels.call import tree_tensors
from sparse_accel.channels.graph import UnsupportedModelError, tensors_of
from sparse_accel.channels.runs import run_model
from sparse_accel.wrappers import bare_model, copy_model

Loss = Callable[[Any, Any], Tensor]


class Samples:
    """Inputs with what the loss compares the outputs to, to be passed over as often as need be.

    Args:
        data: one of

            - a tuple ``(inputs, targets)`` with a tensor of targets: split into batches along the first dimension;
              ``inputs`` is a tensor, or a tuple or mapping of tensors;
            - an iterable of such pairs (a list, a DataLoader), each a batch. A one-shot iterator is read once and kept;
            - an iterable of mappings (or one mapping): keyword inputs of the model, and the targets themselves:
              ``loss(output, batch)``;
            - a function without arguments that returns such an iterable, called for every pass.
        batch_size: of the batches that a pair of tensors is split into.

    Raises:
        TypeError, ValueError: ``data`` or ``batch_size`` is none of these.

    Example:
        >>> samples = Samples((torch.zeros(5, 2), torch.arange(5)), batch_size=2)
        >>> [(tuple(x.shape), y.tolist()) for x, y in samples.batches()]
        [((2, 2), [0, 1]), ((2, 2), [2, 3]), ((1, 2), [4])]
    """

    def __init__(self, data: Any, batch_size: int = 256) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size: expected an integer >= 1, got {batch_size!r}")
        self.batch_size = batch_size
        self.whole = isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Tensor)
        if self.whole:
            inputs, targets = data
            count = len(targets) if targets.dim() else 0
            lengths = {len(tensor) if tensor.dim() else 0 for tensor in tree_tensors(inputs)}
            if not count or lengths != {count}:
                raise ValueError(
                    f"data: expected inputs and targets of one length >= 1, got {sorted(lengths)} and {count}"
                )
        elif isinstance(data, Tensor) or not (isinstance(data, Iterable) or callable(data)):
            raise TypeError(
                "data: expected a tuple (inputs, targets) of tensors, an iterable of such pairs or of mappings, or a "
                f"function that returns one, got {type(data).__name__}"
            )
        self.data = list(data) if isinstance(data, Iterator) else data

    def batches(self, device: torch.device | None = None) -> Iterator[tuple[Any, Any]]:
        """``(inputs, targets)``, one batch after the other, on a device.

        Raises:
            TypeError: an item is neither a pair nor a mapping.
            ValueError: there is none.
        """
        empty = True
        for item in self._items():
            empty = False
            if isinstance(item, (tuple, list)) and len(item) == 2:
                pair = (item[0], item[1])
            elif isinstance(item, Mapping):
                pair = (item, item)
            else:
                raise TypeError(
                    "data: expected pairs (inputs, targets) or mappings as batches (two tensors in a tuple are one "
                    f"pair), got {type(item).__name__}"
                )
            yield pair if device is None else to_device(pair, device)
        if empty:
            raise ValueError("data: expected at least one batch, got none")

    def first_inputs(self, device: torch.device | None = None) -> Any:
        """A copy of the inputs of the first batch."""
        inputs, _ = next(iter(self.batches(device)))
        return copy.deepcopy(inputs)

    def _items(self) -> Iterable[Any]:
        if self.whole:
            inputs, targets = self.data
            return (
                (_rows(inputs, slice(start, start + self.batch_size)), targets[start : start + self.batch_size])
                for start in range(0, len(targets), self.batch_size)
            )
        if isinstance(self.data, Mapping):
            return (self.data,)
        return self.data() if callable(self.data) and not isinstance(self.data, Iterable) else self.data


def _rows(tree: Any, rows: slice) -> Any:
    if isinstance(tree, Tensor):
        return tree[rows]
    if isinstance(tree, Mapping):
        return {key: _rows(item, rows) for key, item in tree.items()}
    return type(tree)(_rows(item, rows) for item in tree) if isinstance(tree, (tuple, list)) else tree


@contextmanager
def same_random_state() -> Iterator[None]:
    """Torch's, numpy's and Python's global random numbers go on afterwards as if nothing had happened."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def _seed_all(seed: int) -> None:
    """The same draws in every pass; devices that nobody has used yet stay so."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class Bench:
    """A copy of a model in eval mode, with data and a loss: changed at will, while the model stays as it is.

    Args:
        model: to copy; wrappers around the whole are taken off.
        loss: ``loss(output, targets)``, a scalar: the mean over the batch.
        samples: the data.

    Attributes:
        model: the copy.
        tensors: its parameters and buffers, by name (a tied one by its first name).

    Raises:
        UnsupportedModelError: the model cannot be used or copied.
    """

    def __init__(self, model: nn.Module, loss: Loss, samples: Samples) -> None:
        if not callable(loss):
            raise TypeError(f"loss: expected a function of outputs and targets, got {type(loss).__name__}")
        self.model = copy_model(bare_model(model, UnsupportedModelError), UnsupportedModelError).eval()
        self.loss, self.samples = loss, samples
        self.tensors = tensors_of(self.model)
        self.device = device_of(self.model)
        self.start = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def load(self, state: Mapping[str, Tensor] | None = None) -> None:
        """Take these parameters and buffers, by their names in :attr:`tensors`; without them those of the start."""
        with torch.no_grad():
            for name, tensor in (self.start if state is None else state).items():
                self.tensors[name].copy_(tensor)

    def state(self) -> dict[str, Tensor]:
        """A copy of the present parameters and buffers."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def buffers_kept(self) -> dict[str, Tensor]:
        """A copy of the buffers: what a forward pass may write."""
        return {name: buffer.detach().clone() for name, buffer in self.model.named_buffers()}

    def passes(self, *others: Bench) -> Iterator[Any]:
        """Run the model, and others beside it, over the data without gradients; yields each batch's targets.

        What the hooks of the models have seen is about that batch. Every pass draws the same random numbers and starts
        with the same buffers.

        Yields:
            ``(outputs, targets)``, an output for each model.
        """
        benches = (self, *others)
        kept = [bench.buffers_kept() for bench in benches]
        _seed_all(0)
        try:
            with torch.no_grad():
                for inputs, targets in self.samples.batches(self.device):
                    yield [run_model(bench.model, copy.deepcopy(inputs)) for bench in benches], targets
        finally:
            for bench, buffers in zip(benches, kept, strict=True):
                bench.load(buffers)

    def mean_loss(self) -> float:
        """The mean of the loss over all samples.

        Raises:
            TypeError, ValueError: the loss does not return one number for a batch.
        """
        total, count = 0.0, 0
        for (output,), targets in self.passes():
            value = self.loss(output, targets)
            if not isinstance(value, Tensor) or value.numel() != 1:
                what = f"shape {[*value.shape]}" if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"loss: expected a tensor of one element for a batch, got {what}")
            size = _batch_length(targets)
            total += float(value) * size
            count += size
        return total / count

    def loss_at(self, state: Mapping[str, Tensor]) -> float:
        """:meth:`mean_loss` with these parameters and buffers, which stay loaded."""
        self.load(state)
        return self.mean_loss()

    def finite_loss(self, name: str) -> float:
        """:meth:`mean_loss` of a model that trained.

        Raises:
            ValueError: it is not finite.
        """
        value = self.mean_loss()
        if not math.isfinite(value):
            raise ValueError(f"{name}: expected a finite loss on data, got {value}")
        return value


def _batch_length(targets: Any) -> int:
    first = next((tensor for tensor in tree_tensors(targets) if tensor.dim()), None)
    return 1 if first is None else max(1, len(first))
