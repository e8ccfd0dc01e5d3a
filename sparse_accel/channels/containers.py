"""What a tree of Python objects holds: the tensors of arguments, and everything that leaves a model."""

from __future__ import annotations

import array
import datetime
import enum
import functools
import itertools
import logging
import re
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence, Set, ValuesView
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparse_accel.channels.graph import UnsupportedModelError

MOST_ITEMS = 10_000  # that an iterator in an output may give
_NUMBERS = (int, float, complex, np.number, np.bool_)
# They hold no tensor, and nothing of a tensor that was not read by an operation seen before.
_PLAIN = (
    *(type(None), str, bytes, bytearray, memoryview, array.array, range, slice, type, types.ModuleType, enum.Enum),
    *(type(...), types.CodeType, torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Generator),
    *(np.generic, np.dtype, datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, re.Pattern),
    *(logging.Logger, type(threading.Lock()), type(threading.RLock()), nn.Module),
)
# The exact types of most items, known without a look through the lists above.
_LEAVES = frozenset((Tensor, nn.Parameter, bool, int, float, complex))
_CLOSED = frozenset((type(None), str, bytes, type, torch.dtype, torch.device))
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial, types.CellType)
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE


def tree_tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, mappings and dataclasses, in order: a torch function's arguments."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from tree_tensors(item)
    elif isinstance(tree, (tuple, list, set, frozenset)):
        for item in tree:
            yield from tree_tensors(item)
    elif is_dataclass(tree) and not isinstance(tree, type):
        for item in fields(tree):
            yield from tree_tensors(getattr(tree, item.name))


def flat(tree: Any) -> Iterator[Any]:
    """What nested tuples, lists and dicts hold, in order."""
    if isinstance(tree, (tuple, list, dict)):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from flat(item)
    else:
        yield tree


def tensors_inside(tree: Any, opened: dict[int, Any] | None = None) -> Iterator[Tensor]:
    """The tensors in any objects that can be opened, in order: those of inputs and attributes.

    Modules count as closed; functions, iterators and what cannot be opened are passed over, and so is what is in
    ``opened``, by id.

    Example:
        >>> from types import SimpleNamespace
        >>> [t.item() for t in tensors_inside(SimpleNamespace(a=[torch.ones(())], b=deque([torch.zeros(())])))]
        [1.0, 0.0]
    """
    return (leaf for leaf in _leaves(tree, False, {} if opened is None else opened) if isinstance(leaf, Tensor))


def output_leaves(tree: Any) -> list[Any]:
    """The tensors, arrays and numbers in a model's output, in order.

    Tuples, lists, mappings, sets of at most one tensor, dataclasses, what ``torch.utils._pytree`` knows, attributes and
    ``__slots__`` of objects, variables that functions have captured, and iterators, which are used up. Modules count as
    closed (they are the model's), and so do the caches of transformers: a model reads its own.

    Raises:
        UnsupportedModelError: an object keeps what it holds out of Python's sight, so that tensors may be in it; an
            iterator goes on and on; a set holds several tensors, which have no order. The message names the type.

    Example:
        >>> from types import SimpleNamespace
        >>> output_leaves({"a": (n for n in (1, torch.ones(2))), "b": SimpleNamespace(c=torch.zeros(1), d="name")})
        [1, tensor([1., 1.]), tensor([0.])]
    """
    return list(_leaves(tree, True, {}))


def output_tensors(tree: Any) -> list[Tensor]:
    """The tensors among :func:`output_leaves`."""
    return [leaf for leaf in output_leaves(tree) if isinstance(leaf, Tensor)]


def _leaves(item: Any, strict: bool, opened: dict[int, Any]) -> Iterator[Any]:
    """``opened`` keeps what was opened, so that no id is given twice; of tuples and the like only those around."""
    kind = type(item)
    if kind in _LEAVES:
        yield item
        return
    if kind in _CLOSED or (kind in (dict, OrderedDict, list, tuple) and not item):
        return
    if isinstance(item, (Tensor, *_NUMBERS)) and not isinstance(item, enum.Enum):
        yield item
        return
    if isinstance(item, np.ndarray) and not item.dtype.hasobject:
        yield item
        return
    if isinstance(item, _PLAIN) or id(item) in opened or _is_cache(item):
        return
    opened[id(item)] = item
    for part in _parts(item, strict):
        yield from _leaves(part, strict, opened)
    if isinstance(item, (tuple, list, dict)):
        del opened[id(item)]  # the same one beside it counts again


def _parts(item: Any, strict: bool) -> Iterator[Any]:
    """What an object holds."""
    kind = type(item)
    known = True
    if isinstance(item, Mapping):
        for key, value in item.items():
            yield from (key, value) if isinstance(key, Tensor) else (value,)
    elif isinstance(item, (Set, types.MappingProxyType)):
        tensors = [part for part in item if isinstance(part, Tensor)]
        if strict and len(tensors) > 1:
            raise UnsupportedModelError(f"the model's output holds a {_name(kind)} of tensors, which has no order")
        yield from item
    elif isinstance(item, np.ndarray):
        yield from item.reshape(-1).tolist()
    elif isinstance(item, (Sequence, deque, ValuesView)):
        yield from item
    elif isinstance(item, Iterator):
        if strict:
            yield from drained(item)
    elif kind in pytree.SUPPORTED_NODES:
        yield from pytree.SUPPORTED_NODES[kind].flatten_fn(item)
    elif isinstance(item, weakref.ref):
        yield item()
    elif isinstance(item, BaseException):
        yield from item.args
    elif isinstance(item, _FUNCTIONS):
        if strict:
            yield from _captured(item)
    else:
        known = not _hides(kind)
    if strict and not known:
        raise UnsupportedModelError(
            f"the model's output holds a {_name(kind)}, in which tensors cannot be found: return tensors in tuples, "
            "mappings, dataclasses or objects with attributes, or register the type with torch.utils._pytree"
        )
    yield from getattr(item, "__dict__", {}).values()
    for slot in _slots(kind):
        yield getattr(item, slot.__name__, None)  # not every slot need be set


def drained(iterator: Iterator[Any]) -> list[Any]:
    """All that an iterator gives.

    Raises:
        UnsupportedModelError: it is more than :data:`MOST_ITEMS`.
    """
    items = list(itertools.islice(iterator, MOST_ITEMS + 1))
    if len(items) > MOST_ITEMS:
        name = _name(type(iterator))
        raise UnsupportedModelError(f"the model's output holds a {name} of more than {MOST_ITEMS} items")
    return items


def settled(output: Any) -> Any:
    """An output with lists in place of the iterators that it is or holds, so that what they compute is computed."""
    if isinstance(output, Iterator):
        return [settled(item) for item in drained(output)]
    if type(output) in (tuple, list) and any(isinstance(item, Iterator) for item in output):
        return type(output)(map(settled, output))
    if type(output) is dict and any(isinstance(item, Iterator) for item in output.values()):
        return {key: settled(item) for key, item in output.items()}
    return output


def _captured(function: Any) -> Iterator[Any]:
    """What a callable carries along."""
    if isinstance(function, functools.partial):
        yield from (function.func, function.args, function.keywords)
    elif isinstance(function, types.CellType):
        try:
            yield function.cell_contents
        except ValueError:
            return  # empty
    elif isinstance(function, types.FunctionType):
        yield from (function.__closure__, function.__defaults__, function.__kwdefaults__)
    else:
        yield getattr(function, "__self__", None)
        yield getattr(function, "__func__", None)


def _slots(kind: type) -> list[Any]:
    """Descriptors of the ``__slots__`` of a class and its parents."""
    return [
        member
        for base in kind.__mro__
        if base.__flags__ & _HEAP_TYPE
        for member in vars(base).values()
        if isinstance(member, types.MemberDescriptorType)
    ]


def _hides(kind: type) -> bool:
    """Whether objects of a class hold more than a dictionary, ``__slots__`` and weak references: C code's own."""
    pointers = len(_slots(kind)) + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    size = object.__basicsize__ + pointers * tuple.__itemsize__
    return kind.__itemsize__ != 0 or kind.__basicsize__ > size


def _is_cache(item: Any) -> bool:
    return any(base.__name__ == "Cache" and base.__module__.startswith("transformers.") for base in type(item).__mro__)


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
