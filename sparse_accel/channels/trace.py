"""One run of a model that follows its channels.

A :class:`torch.overrides.TorchFunctionMode` sees every torch function of the forward pass with its actual tensors,
so that Python control flow, modules used twice and functional calls need no special care. Beside each tensor we keep
a :class:`~sparse_accel.channels.slots.Value`: which channel every element belongs to, and whether it is the same for
all inputs. What an operation does to them is in the modules of :mod:`~sparse_accel.channels.rules`; an operation
without a rule pins all channels that it takes: they stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from sparse_accel.channels import rules
from sparse_accel.channels.attributes import Counted, mark_attributes, unmark_attributes
from sparse_accel.channels.call import Call, Measured, measure
from sparse_accel.channels.containers import flat, tensors_inside, tree_tensors
from sparse_accel.channels.folds import merge_runs, settle_folds
from sparse_accel.channels.graph import ChannelGraph, UnsupportedModelError, refuse_shapeless, tensors_of
from sparse_accel.channels.rules.response_norm import ResponseNorms
from sparse_accel.channels.runs import Examples, as_tensors, attribute_tensors, run_leaves
from sparse_accel.channels.slots import Value
from sparse_accel.channels.stacks import find_stacks
from sparse_accel.channels.unvisited import settle_unvisited
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
        self.parameter_uses: dict[str, int] = {}  # in one run, the most
        self.visited: set[str] = set()  # modules that ran
        self.changed: set[str] = set()  # buffers that the forward pass writes
        self.run_number = 0
        self._uses: dict[str, int] = {}  # of parameters and buffers in this run
        self.norms = ResponseNorms()
        self.leaked = False  # whether Python has seen values that depend on the input
        self.finished: frozenset[str] = frozenset()  # weights read in eval mode, when the pass in train mode runs
        self.absorbers: list[tuple[Value, str]] = []  # a linear map's result and the running mean that takes it
        mark_attributes(model, self.graph.frozen)
        for _, item in attribute_tensors(model):
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
        if self.norms.busy:
            return func(*args, **kwargs)
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
            for item in flat((call.args, call.kwargs)):
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
                self._uses[name] = self._uses.get(name, 0) + 1
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

    def finish(self, output: Tensor, value: Value, taken: Tensor, parameters: Sequence[str]) -> None:
        """A module that was followed as a whole has made ``output`` of ``taken``."""
        self.value_of(taken).uses += 1
        for name in parameters:
            self._uses[name] = self._uses.get(name, 0) + 1
        self.values[output] = replace(value, const=value.const & (not (self.leaked or self.finished)))

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

    def run(self, examples: Examples) -> list[Tensor]:
        """Run the model on every example; what leaves it, whose channels stay."""
        return [tensor for example in examples.single() for tensor in self._run_once(example)]

    def _run_once(self, example: Examples) -> list[Tensor]:
        del self.stack[1:]
        self.run_number += 1
        self.leaked = False
        self._uses = {}
        for tensor in tensors_inside(example.runs):
            if id(tensor) not in self.names:
                self.values[tensor] = Value.opaque(tensor.shape)
        try:
            with torch.no_grad(), self.follow_modules(), self:
                leaves, kept = run_leaves(self.model, example)
        except UnsupportedModelError:
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"{self.where()}: the forward pass on example_inputs failed: {type(error).__name__}: {error}"
            ) from error
        for read in self.graph.reads:
            read.run = self.run_number if read.run is None else read.run
        for name, count in self._uses.items():
            self.parameter_uses[name] = max(count, self.parameter_uses.get(name, 0))
        for where, tensor in kept:
            if not self.is_pinned(tensor):
                self.graph.note(f"{where} holds what the forward pass made, for others to see: its channels are kept")
        leaves += [tensor for _, tensor in kept]
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                self.pin(leaf)
                self.value_of(leaf).uses += 1
            elif isinstance(leaf, Counted):
                leaf.freeze()
            elif isinstance(leaf, Measured):
                for source in leaf.sources:
                    self.graph.slots.pin(source)
        return as_tensors(leaves)

    def run_in_train_mode(self, examples: Examples) -> None:
        """Follow the channels into modules that only run in train mode (auxiliary heads), which read them too."""
        self.finished = frozenset(read.weight for read in self.graph.reads)
        self.model.train()
        try:
            self.run(examples)
        except UnsupportedModelError as error:
            idle = next(name for name, _ in self.model.named_parameters() if name not in self.parameter_uses)
            self.graph.note(f"{idle}: not used in eval mode, and train mode cannot be followed ({error})")

    @contextmanager
    def follow_modules(self) -> Iterator[None]:
        """Keep ``stack`` up to date while the model runs."""
        handles = []
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name), prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.stack.append((name, module))
            self.visited.add(name)
            self.graph.entered.setdefault(name, len(self.graph.reads))
            self.norms.enter(self, args, kwargs)

        return hook

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        self.norms.leave(self, module, output)
        if len(self.stack) > 1:
            self.stack.pop()


def trace(model: nn.Module, example_inputs: Any) -> tuple[ChannelGraph, list[Tensor]]:
    """Run ``model`` on the example and follow its channels.

    Args:
        model: a module in eval mode that may be run (a copy: a forward pass can change buffers).
        example_inputs: a tensor, a tuple of positional inputs, a dict of keyword inputs or
            :class:`~sparse_accel.channels.runs.Examples`: all runs are followed into one graph.

    Returns:
        The graph, and all tensors that leave the model.

    Raises:
        UnsupportedModelError: the model holds scripted modules, its forward pass failed, or its output holds what
            cannot be seen through; the message names where.
    """
    model = bare_model(model, UnsupportedModelError)
    examples = Examples.of(example_inputs).check(model)
    refuse_shapeless(model)
    tracer = Tracer(model)
    try:
        outputs = tracer.run(examples)
        if not outputs:
            raise UnsupportedModelError("the model's output holds no tensor")
        settle_folds(tracer.graph, tracer.absorbers, tracer.parameter_uses)
        if any(name not in tracer.parameter_uses for name, _ in model.named_parameters()):
            tracer.run_in_train_mode(examples)
            merge_runs(tracer.graph)
        settle_unvisited(tracer.graph, model, set(tracer.parameter_uses), tracer.visited, examples.unvisited)
    finally:
        unmark_attributes(model)
    tracer.graph.settle_attributes()
    model.eval()  # a pass in train mode may have been the last
    tracer.graph.stacks = find_stacks(model, examples, tracer.graph.entered)
    return tracer.graph, outputs
