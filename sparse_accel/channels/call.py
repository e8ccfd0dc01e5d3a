"""One torch function call, and the registry of what such calls do to channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparse_accel.channels.containers import tree_tensors as tree_tensors
from sparse_accel.channels.graph import ChannelGraph
from sparse_accel.channels.runs import run_model as run_model
from sparse_accel.channels.slots import Value

Results = Value | Sequence[Value]
Rule = Callable[["Call"], Results]
RULES: dict[str, Rule] = {}

_RANDOM = ("rand", "dropout", "bernoulli", "multinomial", "normal", "poisson", "uniform", "exponential")


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register what the torch functions of these names do to channels."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


class Measured(int):
    """A size that the forward pass read off a tensor, or computed from such sizes: it follows the channels.

    Attributes:
        sources: labels of the tensors in whose dimensions of that size channels lie.
    """

    sources: tuple[Tensor, ...] = ()

    @staticmethod
    def wrap(result: Any, sources: tuple[Tensor, ...] = ()) -> Any:
        """An integer as ``Measured``; anything else as it is."""
        if type(result) is not int:
            return result
        made = Measured(result)
        made.sources = sources
        return made


def measure(result: Any, value: Value | None, dim: int | None) -> Any:
    """What ``Tensor.size`` and the like return, as ``Measured``.

    Args:
        result: a number or all sizes.
        value: what is known of the tensor.
        dim: the dimension measured; None for all.
    """
    varying = set() if value is None else value.varying()

    def sources(dims: set[int]) -> tuple[Tensor, ...]:
        return (value.labels,) if value is not None and dims & varying else ()

    if isinstance(result, torch.Size):
        return torch.Size([Measured.wrap(size, sources({index})) for index, size in enumerate(result)])
    return Measured.wrap(result, sources(varying if dim is None else {dim}))


def _measured(name: str) -> Callable[[Measured, Any], Any]:
    plain = getattr(int, name)

    def method(self: Measured, other: Any) -> Any:
        return Measured.wrap(plain(self, other), self.sources + getattr(other, "sources", ()))

    return method


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    for _form in (f"__{_name}__", f"__r{_name}__"):
        setattr(Measured, _form, _measured(_form))


class Trace(Protocol):
    """The run that a call is part of, as rules see it: :class:`sparse_accel.channels.trace.Tracer`.

    Attributes:
        graph: under construction.
        names: of parameters and buffers, by id.
        stack: the modules that run now, innermost last, with their names.
        changed: buffers that the forward pass has written.
        finished: weights read in eval mode, while the pass in train mode runs.
        absorbers: results of linear maps, each with the running mean that takes it.
    """

    graph: ChannelGraph
    names: dict[int, str]
    stack: list[tuple[str, nn.Module]]
    changed: set[str]
    finished: frozenset[str]
    absorbers: list[tuple[Value, str]]

    def value_of(self, tensor: Tensor) -> Value:
        """What is known of a tensor."""

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether none of the tensor's channels could go."""

    def pin(self, tensor: Tensor) -> None:
        """Keep all channels of a tensor."""

    def where(self) -> str:
        """The module that runs now, for messages."""

    def finish(self, output: Tensor, value: Value, taken: Tensor, parameters: Sequence[str]) -> None:
        """A module that was followed as a whole has made ``output`` of ``taken``."""


@dataclass
class Call:
    """One torch function call: what a rule gets to see."""

    tracer: Trace
    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    @property
    def graph(self) -> ChannelGraph:
        """The graph under construction."""
        return self.tracer.graph

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or by name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def value(self, position: int = 0, name: str = "input") -> Value:
        """What is known of a tensor argument."""
        return self.tracer.value_of(self.arg(position, name))

    def tensors(self) -> list[Tensor]:
        """All tensor arguments, in order."""
        return list(tree_tensors((self.args, self.kwargs)))

    def give_up(self, reason: str) -> Results:
        """Keep every channel that the call takes, and say why."""
        taken = [t for t in self.tensors() if not self.tracer.is_pinned(t)]
        if taken:
            self.graph.note(f"{self.tracer.where()}: {self.name}: {reason}")
        for tensor in taken:
            self.tracer.pin(tensor)
        tensors = self.tensors()
        const = all(bool(self.tracer.value_of(t).const.all()) for t in tensors)
        if tensors:
            const = const and not any(random in self.name for random in _RANDOM)
        else:
            const = self.name in ("zeros", "ones")  # others may depend on sizes
        results = [Value.opaque(t.shape, const) for t in tree_tensors(self.result)]
        return results if not isinstance(self.result, Tensor) else results[0]
