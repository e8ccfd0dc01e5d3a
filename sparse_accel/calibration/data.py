"""Calibration data, and the passes over it that feed statistics: inputs in, module inputs and outputs out.

Pruning with second moments needs, of a few layers at a time, the inputs that a model sees. :func:`stream` runs the
model over the data and hands every call of those layers to a visitor; nothing is stored.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparse_accel.channels.call import run_model, tree_tensors
from sparse_accel.channels.runs import Examples

logger = logging.getLogger("sparse_accel")

Visit = Callable[[str, Tensor, Any], None]

MOST_SAMPLES, MOST_NUMBERS = 128, 1 << 20  # of a batch: what layers make of an image is several times its size


class Calibration:
    """The inputs on which a model's statistics are taken, to be passed over as often as need be.

    Args:
        inputs: one of

            - a tensor ``[N, ...]``: split into batches along its first dimension;
            - a mapping: one batch of keyword inputs;
            - an iterable of model inputs (a list, a DataLoader): each a tensor, a tuple or list of positional inputs
              (of more than the model's ``forward`` takes, as ``(images, labels)``, pruners use the leading ones)
              or a mapping of keyword inputs. A one-shot iterator is read once and kept in memory;
            - a function without arguments that returns such an iterable, called for every pass: fresh data;
            - a ``Calibration``.
        batch_size: of the batches that a tensor is split into. None: 128 samples, or as many as a million numbers make
            (6 images of 224 x 224 pixels; at least one), so that large samples do not take as much more memory.
        select: takes an item of the iterable and returns the model's inputs: ``select=lambda item: item[0]`` for a
            DataLoader of ``(images, labels)``.

    Raises:
        TypeError: ``inputs`` is none of these.

    Example:
        >>> [tuple(batch.shape) for batch in Calibration(torch.zeros(5, 3), batch_size=2).batches()]
        [(2, 3), (2, 3), (1, 3)]
    """

    fresh = False  # whether the batch that is out had not been there in an earlier pass: Batches knows

    def __init__(
        self, inputs: Any, batch_size: int | None = None, *, select: Callable[[Any], Any] | None = None
    ) -> None:
        if isinstance(inputs, Calibration):
            inputs, batch_size, select = inputs.inputs, inputs.batch_size, select or inputs.select
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        if isinstance(inputs, nn.Module) or not (callable(inputs) or isinstance(inputs, Iterable)):
            raise TypeError(
                "calibration: expected a tensor, an iterable of model inputs (tensors, tuples, mappings) or a "
                f"function that returns one, got {type(inputs).__name__}"
            )
        if not isinstance(inputs, Tensor) and isinstance(inputs, Iterator):
            inputs = list(inputs)
        self.inputs: Any = inputs
        self.batch_size = _samples_of(inputs) if batch_size is None else batch_size
        self.select = select

    def batches(self, device: torch.device | str | None = None) -> Iterator[Any]:
        """The model's inputs, one batch after the other, their tensors on ``device``.

        Raises:
            TypeError: an item is not a tensor, tuple, list or mapping.
            ValueError: there is no item.
        """
        empty = True
        for item in self._items():
            empty = False
            batch = self._inputs(item)
            yield batch if device is None else to_device(batch, torch.device(device))
        if empty:
            raise ValueError("calibration: expected at least one batch, got none")

    def _inputs(self, item: Any) -> Any:
        """The model's inputs in an item of the data."""
        batch = item if self.select is None else self.select(item)
        if not isinstance(batch, (Tensor, tuple, list, Mapping, Examples)):
            raise TypeError(
                f"calibration: expected tensors, tuples or mappings as model inputs, got {type(batch).__name__}"
            )
        return batch

    def _items(self) -> Iterable[Any]:
        inputs = self.inputs
        if isinstance(inputs, Tensor):
            return inputs.split(self.batch_size) if len(inputs) else ()
        if isinstance(inputs, Mapping):
            return (inputs,)
        return inputs() if callable(inputs) and not isinstance(inputs, Iterable) else inputs


def _samples_of(inputs: Any) -> int:
    each = inputs[0].numel() if isinstance(inputs, Tensor) and inputs.dim() > 0 and len(inputs) else 1
    return max(1, min(MOST_SAMPLES, MOST_NUMBERS // max(1, each)))


CUT = ("input_ids", "attention_mask", "token_type_ids")  # of a mapping: one number for each token


def token_windows(sequences: Any, length: int, *, marks: tuple[int, int] = (1, 1)) -> list[Any]:
    """Token sequences cut into shorter ones, each between the marks that the long one had: for calibration at the
    length at which a model is used.

    An encoder that embeds sentences of 32 tokens sees its ``[CLS]`` and ``[SEP]`` sixteen times as often, for each
    token of text, as pieces of 1,024 tokens show them to it, and attends over no more than 32. Statistics of the long
    pieces lead to another pruned model, and a worse one at that length.

    Args:
        sequences: tokens ``[N, L]`` (integers), a mapping with such ``input_ids`` (and ``attention_mask``,
            ``token_type_ids``), or an iterable of these; without padding.
        length: tokens of a window, its marks among them.
        marks: how many tokens at the start and at the end of every sequence each of its windows begins and ends with;
            ``(0, 0)`` for models without.

    Returns:
        For each tensor or mapping one of the same kind, ``[N * windows, length]``, the windows of a sequence one after
        the other. What is left at its end and makes no whole window is dropped; sequences no longer than ``length``
        stay as they are.

    Raises:
        TypeError: ``sequences`` are none of these, or tokens are no integers.
        ValueError: ``length`` leaves no room beside the marks; sequences differ in them; there is padding; a mapping
            has no ``input_ids``, or other entries, which cannot be cut by position.

    Example:
        >>> token_windows(torch.tensor([[101, 1, 2, 3, 4, 5, 102]]), 4)
        [tensor([[101,   1,   2, 102],
                [101,   3,   4, 102]])]
    """
    first, last = marks
    if min(first, last) < 0 or length <= first + last:
        raise ValueError(f"length: expected more than the {first} + {last} marks of a window, got {length}")
    single = isinstance(sequences, (Tensor, Mapping))
    return [_windows_of(batch, length, first, last) for batch in ([sequences] if single else sequences)]


def _windows_of(batch: Any, length: int, first: int, last: int) -> Any:
    if isinstance(batch, Mapping):
        if other := sorted(set(batch) - set(CUT)):
            raise ValueError(f"sequences: expected {', '.join(CUT)} alone, got {', '.join(other)}")
        if "input_ids" not in batch:
            raise ValueError(f"sequences: expected input_ids, got {', '.join(batch) or 'nothing'}")
        mask = batch.get("attention_mask")
        if mask is not None and not mask.all():
            raise ValueError("sequences: expected no padding, got an attention_mask with zeros")
        return {key: _windows_of(value, length, first, last) for key, value in batch.items()}
    if not isinstance(batch, Tensor) or batch.dim() != 2 or batch.is_floating_point() or batch.is_complex():
        got = f"{batch.dtype} {list(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
        raise TypeError(
            f"sequences: expected integer tokens [N, L], mappings with input_ids, or a list of these, got {got}"
        )
    tokens, body = batch.shape[1], length - first - last
    number = (tokens - first - last) // body
    if tokens <= length:
        return batch
    if (batch[:, :first] != batch[:1, :first]).any() or (batch[:, tokens - last :] != batch[:1, tokens - last :]).any():
        raise ValueError(
            f"marks: expected the same {first} first and {last} last tokens in all sequences; (0, 0): none"
        )
    text = batch[:, first : first + number * body].reshape(-1, number, body)
    start, end = (part[:, None].expand(-1, number, -1) for part in (batch[:, :first], batch[:, tokens - last :]))
    return torch.cat([start, text, end], 2).flatten(0, 1)


def to_device(tree: Any, device: torch.device) -> Any:
    """Nested tuples, lists and mappings with their tensors on ``device``, those of inference mode as ordinary ones."""
    if isinstance(tree, Tensor):
        moved = tree.to(device)
        return moved.clone() if moved.is_inference() and not torch.is_inference_mode_enabled() else moved
    if isinstance(tree, Mapping):
        return {key: to_device(item, device) for key, item in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(to_device(item, device) for item in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(to_device(item, device) for item in tree)
    return tree


class _LastCall(BaseException):
    """Ends a forward pass; not an Exception, so that a model's own handlers let it through."""


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, every module back in its own mode afterwards."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def device_of(model: nn.Module) -> torch.device | None:
    """The device of a model's first parameter or buffer."""
    first = next(tree_tensors((list(model.parameters()), list(model.buffers()))), None)
    return None if first is None else first.device


def stream(
    model: nn.Module,
    calibration: Calibration,
    modules: Mapping[str, nn.Module],
    visit: Visit,
    *,
    calls: int = 0,
    required: bool = True,
) -> int:
    """Run the model over the data in eval mode, without gradients; show every call of some modules to a visitor.

    Args:
        model: runs under the caller's autocast, on the device of its first parameter or buffer.
        calibration: the data.
        modules: the modules to watch, by the name that the visitor gets. Batches may call them any number of times.
        visit: called as ``visit(name, x, y)`` after a call of a module, x its first tensor input, y its output. What
            it raises reaches the caller.
        calls: end each forward pass after so many calls of the modules in all: right where every batch is known to make
            so many. A batch that is not known (``calibration.fresh``) goes to its end, and so do all with 0.
        required: whether a module that no batch calls is an error.

    Returns:
        The number of batches.

    Raises:
        ValueError: a module takes no tensor, or none of the batches calls it; the message names it.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> stream(net, Calibration(torch.zeros(4, 2)), {"2": net[2]}, lambda name, x, y: print(name, tuple(x.shape)))
        2 (4, 3)
        1
    """
    met = dict.fromkeys(modules, 0)
    left = math.inf  # calls until this batch ends

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            nonlocal left
            x = next(tree_tensors((args, kwargs)), None)
            if x is None:
                raise ValueError(f"{name} ({type(module).__name__}): is called without a tensor")
            visit(name, x, output)
            met[name] += 1
            left -= 1
            if not left:
                raise _LastCall

        return hook

    count = 0
    handles = [m.register_forward_hook(hook_of(name), with_kwargs=True) for name, m in modules.items()]
    try:
        with torch.no_grad(), eval_mode(model):
            for batch in calibration.batches(device_of(model)):
                left = calls if calls and not calibration.fresh else math.inf
                with suppress(_LastCall):
                    run_model(model, batch)
                count += 1
    finally:
        for handle in handles:
            handle.remove()
    idle = [name for name, number in met.items() if not number]
    if idle and required:
        raise ValueError(f"{idle[0]} ({type(modules[idle[0]]).__name__}): the forward pass does not call this module")
    return count


def all_reduce_(tensors: Iterable[Tensor]) -> None:
    """Sum tensors over the ranks of the default process group, in place; nothing to do without one."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def check_bytes(name: str, value: object) -> None:
    """Raise ValueError unless an argument is a number of bytes."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}: expected a number of bytes, got {value!r}")


def require_memory(nbytes: int, limit: int | None, what: str) -> None:
    """State how much memory is about to be taken; refuse more than ``limit``.

    Args:
        nbytes: bytes.
        limit: bytes, or None for no limit.
        what: takes them.

    Raises:
        ValueError: past the limit.
    """
    logger.info("%s: %.1f MB", what, nbytes / 1e6)
    if limit is not None and nbytes > limit:
        raise ValueError(f"max_memory: expected at least {nbytes} bytes for {what}, got {limit}")
