"""Runs of a model on examples: every way in which it is used, and all that leaves it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparse_accel._modes import layer_by_layer
from sparse_accel.channels.containers import output_leaves, settled, tensors_inside

Method = str | Callable[..., Any]
_OWN = frozenset(("_parameters", "_buffers", "_modules"))


@dataclass(frozen=True, init=False)
class Examples:
    """The ways in which a model is used: several inputs, and methods besides ``forward``.

    What is to be removed, and what stays, is decided on one analysis of all of them, and all of their outputs are
    compared. Every function with ``example_inputs`` takes it, or makes it of ``example_inputs`` and ``methods``.

    Args:
        inputs: of one run, a tensor, a tuple of positional inputs or a dict of keyword inputs; or of several, a list of
            tuples and dicts. (A list of anything else means positional inputs, like a tuple.)
        methods: what to call with them: names of the model's methods (``"encode"``, ``"decoder.generate"``), or
            functions that take the model and the inputs. Without it, the model itself (``"forward"``). With one example
            all of them take it; with several there must be one for each.
        unvisited: what becomes of channels that a layer may read which no example reaches, judged by its sizes:
            ``"keep"`` or ``"ignore"``. The notes name such layers either way.

    Attributes:
        runs: (method, inputs), in order.

    Raises:
        TypeError, ValueError: an argument is not as above; the message names it.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> [len(run.runs) for run in (Examples(torch.zeros(1, 4)), Examples([(torch.zeros(1, 4),), {"x": 0}]))]
        [1, 2]
        >>> [method for method, _ in Examples(torch.zeros(1, 4), methods=["forward", "0"]).runs]
        ['forward', '0']
    """

    runs: tuple[tuple[Method, Any], ...]
    unvisited: str

    def __init__(self, inputs: Any, methods: Sequence[Method] | None = None, *, unvisited: str = "keep") -> None:
        if unvisited not in ("keep", "ignore"):
            raise ValueError(f"unvisited: expected 'keep' or 'ignore', got {unvisited!r}")
        several = isinstance(inputs, list) and bool(inputs) and all(isinstance(i, (tuple, Mapping)) for i in inputs)
        examples = inputs if several else [inputs]
        given: Any = ["forward"] * len(examples) if methods is None else methods
        if not isinstance(given, (list, tuple)) or not all(isinstance(name, str) or callable(name) for name in given):
            raise TypeError(f"methods: expected a list of names or functions, got {given!r}")
        for name in given:  # copies of the model are run, not the model itself
            if isinstance(name, nn.Module) or isinstance(getattr(name, "__self__", None), nn.Module):
                kind = type(getattr(name, "__self__", name)).__name__
                raise TypeError(f"methods: expected the name of a method, got what is bound to a {kind}")
        names: list[Method] = list(given)
        if not names or (len(examples) > 1 and len(names) != len(examples)):
            raise ValueError(f"methods: expected one for each of the {len(examples)} examples, got {len(names)}")
        if len(examples) < len(names):
            examples = examples * len(names)
        object.__setattr__(self, "runs", tuple(zip(names, examples, strict=True)))
        object.__setattr__(self, "unvisited", unvisited)

    @classmethod
    def of(cls, example_inputs: Any, methods: Sequence[Method] | None = None, unvisited: str | None = None) -> Examples:
        """The examples that the arguments of a function mean.

        Raises:
            TypeError, ValueError: see :class:`Examples`; ``methods`` or ``unvisited`` beside examples that have them.
        """
        if not isinstance(example_inputs, Examples):
            return cls(example_inputs, methods, unvisited=unvisited or "keep")
        for name, value in (("methods", methods), ("unvisited", unvisited)):
            if value is not None:
                raise ValueError(f"{name}: expected in the Examples alone, got {value!r} beside them")
        return example_inputs

    def check(self, model: nn.Module) -> Examples:
        """Itself.

        Raises:
            ValueError: the model has no such method.
        """
        for method, _ in self.runs:
            if isinstance(method, str) and not callable(_found(model, method)):
                raise ValueError(f"methods: {type(model).__name__} has no method {method!r}")
        return self

    def single(self) -> Iterator[Examples]:
        """Every run as examples of its own."""
        for run in self.runs:
            alone = object.__new__(Examples)
            object.__setattr__(alone, "runs", (run,))
            object.__setattr__(alone, "unvisited", self.unvisited)
            yield alone


def first_of(example_inputs: Any) -> Any:
    """The first of several examples; other inputs as they are."""
    return next(example_inputs.single()) if isinstance(example_inputs, Examples) else example_inputs


def run_model(model: nn.Module, example_inputs: Any) -> Any:
    """``model(*tuple)``, ``model(**dict)`` or ``model(tensor)``; of :class:`Examples` all runs, the outputs in a list.

    Torch's fast path for Transformers is off, and iterators in the output are lists.
    """
    with layer_by_layer():
        return run_as_is(model, example_inputs)


def run_as_is(model: nn.Module, example_inputs: Any) -> Any:
    """:func:`run_model` at the caller's settings: as fast as the caller's own runs."""
    if isinstance(example_inputs, Examples):
        return [settled(_call(_bound(model, method), inputs)) for method, inputs in example_inputs.runs]
    return settled(_call(model, example_inputs))


def run_leaves(model: nn.Module, example_inputs: Any) -> tuple[list[Any], list[tuple[str, Tensor]]]:
    """All that leaves the model in a run.

    Returns:
        Tensors, arrays and numbers of the output; tensors that the run has put into plain attributes of the modules,
        where the caller may look for them, each with ``"module (kind): attribute"``.

    Raises:
        UnsupportedModelError: see :func:`~sparse_accel.channels.containers.output_leaves`.
    """
    with layer_by_layer():
        before = list(attribute_tensors(model))
        known = {id(tensor) for _, tensor in before}
        leaves = output_leaves(run_as_is(model, example_inputs))
        return leaves, [(where, tensor) for where, tensor in attribute_tensors(model) if id(tensor) not in known]


def outputs_of(model: nn.Module, example_inputs: Any) -> list[Tensor]:
    """:func:`run_leaves` as tensors, to compare."""
    leaves, kept = run_leaves(model, example_inputs)
    return as_tensors([*leaves, *(tensor for _, tensor in kept)])


def as_tensors(leaves: Iterable[Any]) -> list[Tensor]:
    """Tensors and arrays of numbers as plain tensors; single numbers are left out: what they were read off stays.

    Example:
        >>> as_tensors([torch.eye(1).to_sparse(), np.zeros(2), 0.5])
        [tensor([[1.]]), tensor([0., 0.], dtype=torch.float64)]
    """
    found: list[Tensor] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            found += leaf.unbind() if leaf.is_nested else [_strided(leaf)]
        elif isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
            found.append(torch.from_numpy(np.array(leaf)))
    return found


def _strided(tensor: Tensor) -> Tensor:
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def attribute_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors in plain attributes of the modules, no parameters or buffers, with ``"module (kind): attribute"``."""
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    opened: dict[int, Any] = {}
    for name, module in model.named_modules():
        for key, item in vars(module).items():
            for tensor in () if key in _OWN else tensors_inside(item, opened):
                if id(tensor) not in own:
                    yield f"{name or 'model'} ({type(module).__name__}): {key}", tensor


def _call(function: Callable[..., Any], inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return function(**inputs)
    if isinstance(inputs, (tuple, list)):
        return function(*inputs)
    return function(inputs)


def _bound(model: nn.Module, method: Method) -> Callable[..., Any]:
    if method == "forward":
        return model  # with its hooks
    if not isinstance(method, str):
        return lambda *args, **kwargs: method(model, *args, **kwargs)
    found: Callable[..., Any] = _found(model, method)
    return found


def _found(model: nn.Module, method: str) -> Any:
    try:
        return operator.attrgetter(method)(model)
    except AttributeError:
        return None


@contextmanager
def one_by_one(model: nn.Module, owners: Iterable[nn.Module] | None = None) -> Iterator[None]:
    """Mixtures of `transformers` run their experts one after the other, not gathered or in a kernel of their own.

    Args:
        model: whose configurations say how experts run.
        owners: modules in it that own stacks of experts: only while these run. All others compute what they always do,
            to the same bits, so that their outputs may be kept for other passes. None for the whole model.
    """
    configs = {id(config): config for module in model.modules() if (config := _config(module)) is not None}
    open_: list[list[tuple[Any, str]]] = []  # of every call that is under way what the configurations said before

    def begin(*_: Any) -> None:
        open_.append([(config, config._experts_implementation) for config in configs.values()])
        for config in configs.values():
            config._experts_implementation = "eager"

    def end(*_: Any) -> None:
        for config, implementation in open_.pop():
            config._experts_implementation = implementation

    handles = []
    try:
        if owners is None:
            begin()
        for module in owners if owners is not None and configs else ():
            handles.append(module.register_forward_pre_hook(begin))
            handles.append(module.register_forward_hook(end, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        while open_:
            end()


def _config(module: nn.Module) -> Any:
    """A module's configuration, where it has experts run otherwise than one by one."""
    config = getattr(module, "config", None)
    return None if getattr(config, "_experts_implementation", None) in (None, "eager") else config
