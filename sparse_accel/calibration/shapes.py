"""Passes that compute shapes alone: on copies of models whose tensors have no values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sparse_accel.channels.call import tree_tensors
from sparse_accel.channels.runs import attribute_tensors


def without_values(model: nn.Module) -> nn.Module:
    """A copy whose tensors have no values (they are on the device "meta"): it computes shapes alone, at no cost.

    What it does depends on no value: code that asks for one fails there.

    Example:
        >>> without_values(nn.Linear(3, 2))(torch.zeros(5, 3, device="meta")).shape
        torch.Size([5, 2])
    """
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers(), *(tensor for _, tensor in attribute_tensors(model))):
        empty: Tensor = torch.empty_like(tensor.detach(), device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo)


class ShapesAlone(TorchFunctionMode):
    """Answers for functions that on the device "meta" are made of Python, which takes longer than all else.

    What does not fit, in shape or dtype, is left to the function.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        shape = _result_shape(func, args, kwargs) if args and isinstance(args[0], Tensor) and args[0].is_meta else None
        return func(*args, **kwargs) if shape is None else args[0].new_empty(shape)


def _result_shape(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[int] | None:
    """The shape of a plain layer's result; None where it is not told here."""
    x = args[0]
    if func is F.adaptive_avg_pool2d and len(args) == 2 and args[1] in (1, (1, 1)) and x.dim() == 4:
        return (*x.shape[:-2], 1, 1)
    weight = args[1] if len(args) > 1 else None
    if not isinstance(weight, Tensor) or not weight.is_meta or weight.dtype != x.dtype:
        return None
    if func is F.batch_norm:
        fits = kwargs.get("training") is False and x.dim() > 1 and x.shape[1] == len(weight)
        return x.shape if fits else None
    if func is F.linear:
        return (*x.shape[:-1], len(weight)) if x.dim() and x.shape[-1] == weight.shape[1] else None
    return None


class Shapes:
    """Which shapes the inputs of some modules have, batch by batch.

    Args:
        modules: by name.

    Attributes:
        varying: modules that two batches of the same shapes show inputs of other shapes: their values decide.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self.varying: set[str] = set()
        self._shapes: dict[str, list[Any]] = {}  # of the batch that is out
        self._known: dict[Any, dict[str, list[Any]]] = {}  # by the shapes of the batch
        self._kind: Any = None

    def begin(self, batch: Any) -> None:
        """A batch begins; the last one ends."""
        self.end()
        self._shapes = {}
        self._kind = tuple((tuple(t.shape), t.dtype) for t in tree_tensors(batch))

    def end(self) -> None:
        """The last batch ends."""
        if self._kind is None:
            return
        before = self._known.setdefault(self._kind, self._shapes)
        self.varying.update(name for name in self.modules if before.get(name) != self._shapes.get(name))
        self._kind = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on the modules."""
        handles = [m.register_forward_pre_hook(self._hook(n), with_kwargs=True) for n, m in self.modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            x = next(tree_tensors((args, kwargs)), None)
            self._shapes.setdefault(name, []).append(None if x is None else tuple(x.shape))

        return hook
