"""Which matrices of a stacked parameter ``[E, ..]`` a forward pass multiplies with what: experts and their tokens.

A mixture keeps the matrices of its experts in one parameter and uses slices of it, ``linear(x, weight[e])``, whole
batches, ``bmm(x, weight)``, or grouped products. No module is called for an expert, so nothing can be hooked: the
products themselves are watched, below autograd, where all these are ``mm``, ``bmm`` or ``_grouped_mm``, and a slice is
known by its storage, offset and strides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_accel.channels.runs import one_by_one

logger = logging.getLogger("sparse_accel")

aten = torch.ops.aten
# Products, with the positions of their two factors.
_PRODUCTS: dict[Any, int] = {
    aten.mm: 0,
    aten.bmm: 0,
    aten.mv: 0,
    aten._grouped_mm: 0,
    aten.addmm: 1,
    aten.baddbmm: 1,
    aten.addmv: 1,
    aten._addmm_activation: 1,
}
_COPIES = (aten._to_copy, aten.clone, aten.contiguous)
HELD = 8  # gathered copies at a time
_SHAPES_ONLY = (aten.empty_like, aten.zeros_like, aten.ones_like, aten.new_empty, aten.new_zeros, aten.new_ones)


@dataclass(frozen=True)
class SliceCall:
    """One product of inputs with slices of a parameter.

    Attributes:
        name: of the parameter.
        inputs: the other factor as it came.
        input_last: the slices are ``[out, in]``, not ``[in, out]``.
        slices: which of the parameter's slices, in the order of the product.
        rows: for each of them its inputs ``[N, in]``.
    """

    name: str
    inputs: Tensor
    input_last: bool
    slices: tuple[int, ...]
    rows: tuple[Tensor, ...]


class UnclearUseError(Exception):
    """A parameter is not used as a stack of matrices; the message says how it is used."""


@dataclass
class _Place:
    """Memory that holds slices: of the parameter itself or of a copy of some of them."""

    name: str
    tensor: Tensor  # [slices, d1, d2]
    slices: Sequence[int]

    def find(self, operand: Tensor) -> tuple[Sequence[int], bool] | None:
        """The slices that a factor is, and whether transposed; None where it is no whole slices."""
        if operand.dim() not in (2, 3):
            return None
        step, *strides = self.tensor.stride()
        sizes = list(self.tensor.shape[1:])
        count = len(operand) if operand.dim() == 3 else 1
        offset = operand.storage_offset() - self.tensor.storage_offset()
        if step <= 0 or offset < 0 or offset % step or (count > 1 and operand.stride(0) != step):
            return None
        first = offset // step
        if first + count > len(self.tensor):
            return None
        own = list(operand.shape[-2:]), list(operand.stride()[-2:])
        for flipped in (False, True):
            order = slice(None, None, -1) if flipped else slice(None)
            if own[0] == sizes[order] and all(
                size == 1 or a == b for size, a, b in zip(own[0], own[1], strides[order], strict=True)
            ):
                return self.slices[first : first + count], flipped
        return None


def as_stack(parameter: Tensor) -> Tensor | None:
    """``[..., d1, d2]`` as ``[slices, d1, d2]``, without a copy; None where its memory does not allow it."""
    try:
        stack = parameter.detach().view(-1, *parameter.shape[-2:])
    except RuntimeError:
        return None
    extent = 1 + sum((size - 1) * stride for size, stride in zip(stack.shape[1:], stack.stride()[1:], strict=True))
    return stack if len(stack) < 2 or stack.stride(0) >= extent else None


class _Products(TorchDispatchMode):
    """Calls ``visit`` with every product of a slice, and ``fault`` with any other use."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        visit: Callable[[SliceCall], None],
        fault: Callable[[str, str], None],
    ) -> None:
        super().__init__()
        self.visit, self.fault = visit, fault
        self.paused = False
        self.gathers = 0
        self.places: dict[int, list[_Place]] = {}  # by the storage's address
        self.copies: dict[tuple[str, tuple[int, ...]], int] = {}
        for name, parameter in parameters.items():
            stack = as_stack(parameter)
            if stack is not None:
                self._add(_Place(name, stack, range(len(stack))))

    def _add(self, place: _Place) -> None:
        self.places.setdefault(place.tensor.untyped_storage().data_ptr(), []).append(place)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        places = [place for t in pytree.tree_leaves((args, kwargs)) for place in self._places(t)]
        if not places or func.is_view or func.overloadpacket in _SHAPES_ONLY:
            return func(*args, **kwargs)
        if func.overloadpacket not in (*_PRODUCTS, *_COPIES):  # inference mode shows composites: look inside
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        try:
            self._understand(func.overloadpacket, args, result)
        except UnclearUseError as error:
            for name in {place.name for place in places}:
                self.fault(name, str(error))
        return result

    def _places(self, tensor: Any) -> list[_Place]:
        if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.layout != torch.strided:
            return []
        return self.places.get(tensor.untyped_storage().data_ptr(), [])

    def _find(self, tensor: Tensor) -> tuple[str, Sequence[int], bool] | None:
        for place in self._places(tensor):
            found = place.find(tensor)
            if found is not None:
                return place.name, *found
        return None

    def _understand(self, packet: Any, args: Any, result: Any) -> None:
        if packet in _PRODUCTS:
            left, right = args[_PRODUCTS[packet] : _PRODUCTS[packet] + 2]
            self._product(packet, left, right, args)
            return
        if packet in _COPIES and self._copy(args[0], result):
            return
        if packet is aten.index and len(args[1]) == 1 and self._gather(args[0], args[1][0], result):
            return
        if packet is aten.index_select and args[1] == 0 and self._gather(args[0], args[2], result):
            return
        raise UnclearUseError(f"is used in {packet.__name__}")

    def _product(self, packet: Any, left: Tensor, right: Tensor, args: Any) -> None:
        on_right, on_left = self._find(right), self._find(left)
        if (on_right is None) == (on_left is None):
            raise UnclearUseError(f"parts of it are used in {packet.__name__}")
        if on_right is not None:
            name, slices, flipped = on_right
            inputs, input_last = left, flipped
        else:
            assert on_left is not None
            name, slices, flipped = on_left
            inputs, input_last = right, not flipped
        rows = inputs.detach()
        rows = rows[:, None] if rows.dim() == 1 and on_right is None else rows
        rows = rows if on_right is not None else rows.mT
        if packet is aten._grouped_mm and rows.dim() == 2:
            if len(args) < 3 or args[2] is None or on_right is None:
                raise UnclearUseError("is used in _grouped_mm without offsets")
            ends = [0, *args[2].tolist()]
            parts = [rows[begin:end] for begin, end in pairwise(ends)]
        else:
            parts = [rows] if rows.dim() == 2 else list(rows)
        if len(parts) != len(slices):
            raise UnclearUseError(f"{len(slices)} of its matrices meet {len(parts)} inputs in {packet.__name__}")
        which = sorted(set(slices))
        if len(which) < len(slices):  # gathered for every token: those of one matrix together
            together = [torch.cat([p for p, s in zip(parts, slices, strict=True) if s == number]) for number in which]
            slices, parts = which, together
        self.visit(SliceCall(name, inputs, input_last, tuple(slices), tuple(parts)))

    def _copy(self, source: Tensor, result: Tensor) -> bool:
        """Note a copy of whole slices, such as autocast makes."""
        found = self._find(source)
        if found is None:
            return False
        name, slices, flipped = found
        stack = result if result.dim() == 3 else result[None]
        self._remember(_Place(name, stack.mT if flipped else stack, list(slices)), (name, tuple(slices)))
        return True

    def _gather(self, source: Tensor, index: Any, result: Tensor) -> bool:
        """Note slices that were gathered with a tensor of their numbers."""
        found = self._find(source) if source.dim() == 3 else None
        if found is None or not isinstance(index, Tensor) or index.dtype == torch.bool or index.dim() != 1:
            return False
        name, slices, flipped = found
        self.gathers += 1
        place = _Place(name, result.mT if flipped else result, [slices[i] for i in index.tolist()])
        self._remember(place, (name, (-1, self.gathers % HELD)))
        return True

    def _remember(self, place: _Place, key: tuple[str, tuple[int, ...]]) -> None:
        """A copy is held, so that its address names it, until the next of the same key."""
        self.places.pop(self.copies.get(key, -1), None)
        self.copies[key] = place.tensor.untyped_storage().data_ptr()
        self.places[self.copies[key]] = [place]


@contextmanager
def watch_slices(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    visit: Callable[[SliceCall], None],
    fault: Callable[[str, str], None],
    padding: Callable[[str, Tensor], Tensor | None] | None = None,
) -> Iterator[None]:
    """Show every product of slices of some parameters to a visitor.

    Args:
        model: that runs inside.
        parameters: of two matrix dimensions and others before them, by name.
        visit: called with each product, see :class:`SliceCall`.
        fault: called with the name of a parameter and how it is used otherwise.
        padding: tells of a module, by name, and its first input which positions are padding, a boolean tensor of its
            leading shape; None: none is, or it cannot be told. Modules that own one of the parameters run a second time
            on such inputs, with NaN there: rows that come out of it do not count.
    """
    if not parameters:
        yield
        return
    mode = _Products(parameters, visit, fault)
    owners = {
        name: module
        for name, module in model.named_modules()
        if any(own is p for own in module._parameters.values() if own is not None for p in parameters.values())
    }
    with ExitStack() as stack:
        stack.enter_context(one_by_one(model, owners.values()))
        if padding is not None:
            for name, module in owners.items():
                stack.enter_context(_without_padding(module, mode, partial(padding, name)))
        stack.enter_context(mode)
        yield


@contextmanager
def _without_padding(module: nn.Module, mode: _Products, padding: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    before, original = module.__dict__.get("forward"), module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        first = next((i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)), None)
        padded = None if first is None else padding(leaves[first])
        if mode.paused or first is None or padded is None or not leaves[first].is_floating_point():
            return original(*args, **kwargs)
        x = leaves[first]
        shape = (*padded.shape, *[1] * (x.dim() - padded.dim()))
        leaves[first] = x.masked_fill(padded.to(x.device).view(shape), torch.nan)
        marked_args, marked_kwargs = pytree.tree_unflatten(leaves, spec)
        calls: list[SliceCall] = []
        visit, mode.visit = mode.visit, calls.append
        try:
            original(*marked_args, **marked_kwargs)
            mode.paused = True
            output = original(*args, **kwargs)
        finally:
            mode.visit, mode.paused = visit, False
        real = [_finite(call) for call in calls]
        if calls and not any(len(part) for call in real for part in call.rows):
            logger.warning("%s mixes its positions: padded ones count in its matrices", type(module).__name__)
            return original(*args, **kwargs)
        for call in real:
            visit(call)
        return output

    module.forward = run
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _finite(call: SliceCall) -> SliceCall:
    """A call without the rows that are marked by NaN."""
    rows = tuple(part[~part.isnan().any(1)] for part in call.rows)
    return SliceCall(call.name, call.inputs, call.input_last, call.slices, rows)
