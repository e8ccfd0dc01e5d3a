"""One run of a model that follows its channels.

A :class:`torch.overrides.TorchFunctionMode` sees every torch function of the forward pass with its actual tensors,
so that Python control flow, modules used twice and functional calls need no special care. Beside each tensor we keep
a :class:`~sparse_accel.channels.slots.Value`: which channel every element belongs to, and whether it is the same for
all inputs. What an operation does to them is in the modules of :mod:`~sparse_accel.channels.rules`; an operation
without a rule pins all channels that it takes: they stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from sparse_accel.channels import rules
from sparse_accel.channels.attributes import Counted, mark_attributes, unmark_attributes
from sparse_accel.channels.call import Call, measure, run_model, tree_tensors
from sparse_accel.channels.graph import ChannelGraph, UnsupportedModelError, tensors_of
from sparse_accel.channels.slots import Value
from sparse_accel.wrappers import bare_model

# Functions that read only a tensor's description; those that return no tensor need no rule.
_METADATA_NAMES = """dim ndimension size numel nelement stride storage_offset element_size data_ptr untyped_storage
get_device type is_contiguous is_floating_point is_complex is_same_size is_set_to is_pinned is_inference is_tensor
_is_view __len__ __hash__ __repr__ __str__ __format__ result_type can_cast broadcast_shapes is_grad_enabled
_set_grad_enabled is_autocast_enabled get_default_dtype get_default_device"""
_SIZES = frozenset(("size", "shape", "numel", "nelement", "__len__"))
_METADATA = frozenset(_METADATA_NAMES.split())
# Functions to which a module's integer attribute is a size; for all others it is a number that must stay.
_SIZES_ASKED = "view reshape unflatten expand split chunk size shape transpose permute flatten"
_SIZED = frozenset(_SIZES_ASKED.split())


class Tracer(TorchFunctionMode):
    """Follows the channels of one forward pass into ``graph``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.graph = ChannelGraph(tensors_of(model))
        self.names = {id(tensor): name for name, tensor in self.graph.tensors.items()}
        self.values: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.stack: list[tuple[str, nn.Module]] = [("", model)]
        self.parameter_uses: dict[str, int] = {}
        self.changed: set[str] = set()  # buffers that the forward pass writes
        self.leaked = False  # whether Python has seen values that depend on the input
        self.finished: frozenset[str] = frozenset()  # weights read in eval mode, when the pass in train mode runs
        self.absorbers: list[tuple[Value, str]] = []  # a linear map's result and the running mean that takes it
        mark_attributes(model, self.graph.frozen)
        for module in model.modules():
            plain = (item for key, item in vars(module).items() if key not in ("_parameters", "_buffers", "_modules"))
            for item in tree_tensors(list(plain)):
                if id(item) not in self.names:
                    self.values[item] = Value.opaque(item.shape, const=True)

    def where(self) -> str:
        """The module that runs now, for messages."""
        name, module = self.stack[-1]
        return f"{name or 'model'} ({type(module).__name__})"

    def value_of(self, tensor: Tensor) -> Value:
        """What is known of a tensor; a tensor that no seen call made keeps everything before it."""
        if tensor in self.values:
            return self.values[tensor]
        if id(tensor) in self.names:
            return self._parameter_value(tensor)
        self.graph.note(f"{self.where()}: takes a tensor of unknown origin: all channels before it are kept")
        self.graph.pin_everything()
        self.values[tensor] = Value.opaque(tensor.shape)
        return self.values[tensor]

    def _parameter_value(self, tensor: Tensor) -> Value:
        name = self.names[id(tensor)]
        value = Value.opaque(tensor.shape, const=name not in self.changed)
        long = [dim for dim, size in enumerate(tensor.shape) if size > 1]
        if len(long) == 1 and long[0] < 2:
            labels = self.graph.axis(name, long[0])
            value.labels = labels.reshape(tensor.shape)
        elif tensor.dim() > 1:
            self.graph.pin_tensor(name)  # used whole, outside of a linear map
        return value

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether none of the tensor's channels could go."""
        if id(tensor) in self.names:
            return tensor.dim() == 0
        return self.graph.pinned(self.value_of(tensor).labels)

    def pin(self, tensor: Tensor) -> None:
        """Keep all channels of a tensor."""
        if id(tensor) in self.names:
            self.graph.pin_tensor(self.names[id(tensor)])
        else:
            value = self.value_of(tensor)
            if value.matrix is not None:
                self.graph.pin_tensor(value.matrix[0])
            self.graph.slots.pin(value.labels)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "__get__")
        elif name == "__set__":
            raise UnsupportedModelError(f"{self.where()}: sets an attribute of a tensor, which cannot be followed")
        result = func(*args, **kwargs)
        if name in _SIZES:
            return self._measure(name, args, kwargs, result)
        if isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
            name = f"torch.ops {func}"
        self._record(Call(self, name, func, args, kwargs, result))
        return result

    def _measure(self, name: str, args: Any, kwargs: Any, result: Any) -> Any:
        """A size, with the labels of the channels that it counts."""
        tensor = args[0] if args else kwargs.get("input", kwargs.get("self"))
        value = self.values.get(tensor)
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if name == "__len__":
            dim = 0
        elif isinstance(dim, int):
            dim = dim % max(1, tensor.dim())
        return measure(result, value, dim)

    def _record(self, call: Call) -> None:
        has_tensors = any(True for _ in tree_tensors(call.result))
        getter = getattr(call.func, "__name__", "") == "__get__"
        if not has_tensors and (call.name in _METADATA or getter):
            return
        if call.name not in _SIZED:
            for item in _flat((call.args, call.kwargs)):
                if isinstance(item, Counted):
                    item.freeze()
        taken = call.tensors()
        if (
            not has_tensors
            and call.name != "__setitem__"
            and not all(bool(self.value_of(t).const.all()) for t in taken)
        ):
            self.leaked = True
            self.graph.note(f"{self.where()}: {call.name}: reads values: equality holds for the path of the example")
        for tensor in taken:
            if id(tensor) in self.names:
                name = self.names[id(tensor)]
                self.parameter_uses[name] = self.parameter_uses.get(name, 0) + 1
            else:
                self.value_of(tensor).uses += 1
        in_place = call.name.endswith("_") and not call.name.endswith("__")
        name = call.name.rstrip("_") if in_place else call.name
        handler = rules.RULES.get(name) if "out" not in call.kwargs else None
        if call.name == "__setitem__" or (in_place and handler is None):
            self._overwrite(call)
            return
        try:
            results = handler(call) if handler else call.give_up("no rule for this operation")
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            raise UnsupportedModelError(f"{self.where()}: {call.name}: cannot be analysed: {error}") from error
        values = [results] if isinstance(results, Value) else results
        for output, value in zip(tree_tensors(call.result), values, strict=True):
            if any(output is tensor for tensor in taken):
                self._forget_aliases(output)
            if self.leaked or self.finished:
                value = replace(value, const=torch.zeros_like(value.const))
            if id(output) in self.names:
                if in_place:
                    self.changed.add(self.names[id(output)])
                    self.graph.pin_tensor(self.names[id(output)])
                continue
            self.values[output] = value

    def _overwrite(self, call: Call) -> None:
        """An in-place operation without a rule: its tensors stay as they are."""
        call.give_up("writes in place")
        for tensor in call.tensors()[:1]:
            self._forget_aliases(tensor)
            if id(tensor) in self.names:
                self.changed.add(self.names[id(tensor)])
            else:
                self.values[tensor] = Value.opaque(tensor.shape)

    def _forget_aliases(self, tensor: Tensor) -> None:
        """The tensor was written: other views of its memory are no longer known to be constant."""
        if tensor.is_sparse or tensor.is_meta:
            return
        pointer = tensor.untyped_storage().data_ptr()
        for other, value in self.values.items():
            if other is not tensor and not other.is_sparse and other.untyped_storage().data_ptr() == pointer:
                value.const = torch.zeros_like(value.const)
                value.matrix = None

    def run(self, example_inputs: Any) -> list[Tensor]:
        """Run the model once; its output tensors, whose channels stay."""
        del self.stack[1:]
        for tensor in tree_tensors(example_inputs):
            if id(tensor) not in self.names:
                self.values[tensor] = Value.opaque(tensor.shape)
        try:
            with torch.no_grad(), self.follow_modules(), self:
                outputs = list(tree_tensors(run_model(self.model, example_inputs)))
        except UnsupportedModelError:
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"{self.where()}: the forward pass on example_inputs failed: {type(error).__name__}: {error}"
            ) from error
        for tensor in outputs:
            self.pin(tensor)
            self.value_of(tensor).uses += 1
        return outputs

    def run_in_train_mode(self, example_inputs: Any) -> None:
        """Follow the channels into modules that only run in train mode (auxiliary heads), which read them too."""
        self.finished = frozenset(read.weight for read in self.graph.reads)
        self.model.train()
        try:
            self.run(example_inputs)
        except UnsupportedModelError as error:
            idle = next(name for name, _ in self.model.named_parameters() if name not in self.parameter_uses)
            self.graph.note(f"{idle}: not used in eval mode, and train mode cannot be followed ({error})")

    @contextmanager
    def follow_modules(self) -> Iterator[None]:
        """Keep ``stack`` up to date while the model runs."""
        handles = []
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name), prepend=True))
            handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any) -> None:
            self.stack.append((name, module))

        return hook

    def _leave(self, *_: Any) -> None:
        if len(self.stack) > 1:
            self.stack.pop()


def _flat(tree: Any) -> Iterator[Any]:
    if isinstance(tree, (tuple, list, dict)):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _flat(item)
    else:
        yield tree


def trace(model: nn.Module, example_inputs: Any) -> tuple[ChannelGraph, list[Tensor]]:
    """Run ``model`` on the example and follow its channels.

    Args:
        model: a module in eval mode that may be run (a copy: a forward pass can change buffers).
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs.

    Returns:
        The graph, and the model's output tensors.

    Raises:
        UnsupportedModelError: the model holds scripted modules, or its forward pass failed; the message names where.
    """
    model = bare_model(model, UnsupportedModelError)
    _refuse_shapeless(model)
    tracer = Tracer(model)
    try:
        outputs = tracer.run(example_inputs)
        if not outputs:
            raise UnsupportedModelError("the model's output holds no tensor")
        _settle_folds(tracer)
        if any(name not in tracer.parameter_uses for name, _ in model.named_parameters()):
            tracer.run_in_train_mode(example_inputs)
    finally:
        unmark_attributes(model)
    tracer.graph.settle_attributes()
    return tracer.graph, outputs


def _refuse_shapeless(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kind = type(module).__name__
        for key, tensor in {**vars(module), **module._parameters, **module._buffers}.items():
            if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
                raise UnsupportedModelError(f"{name or 'model'} ({kind}): {key} has no shape yet: run the model once")


def _settle_folds(tracer: Tracer) -> None:
    """Decide for every read where a constant may be absorbed: its bias, the running mean after it, or nowhere."""
    graph = tracer.graph
    for value, mean in tracer.absorbers:
        if value.uses == 1 and tracer.parameter_uses[mean] == 1 and value.source is not None:
            graph.reads[value.source].norm = mean
    for read in graph.reads:
        alone = sum(other.weight == read.weight for other in graph.reads) == 1
        if read.bias is not None:
            alone = alone and tracer.parameter_uses.get(read.bias, 0) == 1
        read.bias_ok = alone and (read.bias_ok or read.norm is not None)
        if not read.bias_ok:
            read.foldable = read.foldable & (read.values == 0)
            read.values = read.values * read.foldable
