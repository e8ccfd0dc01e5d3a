"""One pass over all of the data: which modules every batch calls, how often and when; and the blocks among them."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparse_accel.calibration.columns import is_convolution
from sparse_accel.calibration.data import Calibration, device_of, eval_mode, to_device
from sparse_accel.calibration.shapes import ShapesAlone
from sparse_accel.channels.call import run_model
from sparse_accel.channels.containers import tensors_inside

_CONTAINERS = (nn.ModuleList, nn.Sequential)
_PLAIN = (bool, int, float, str, type(None))
_DICTS = (dict, OrderedDict)  # of hooks, mostly empty


class Survey:
    """The calls of every module of a model.

    Attributes:
        least, most: calls that a batch makes, by module.
        first: when the first batch called each module.
        stateful: modules in which, or in whose parts, the first batch left tensors that were not there before.
    """

    def __init__(self) -> None:
        self.least: dict[nn.Module, int] = {}
        self.most: dict[nn.Module, int] = {}
        self.first: dict[nn.Module, list[int]] = {}
        self.stateful: set[nn.Module] = set()

    def once(self) -> dict[nn.Module, list[int]]:
        """The modules that every batch calls exactly once, each with when the first batch did.

        Without those that leave tensors behind: who knows which other module reads them.
        """
        return {
            module: when
            for module, when in self.first.items()
            if self.least[module] == self.most[module] == 1 and module not in self.stateful
        }


def survey(
    model: nn.Module,
    calibration: Calibration,
    begin: Callable[[Any], None] = lambda batch: None,
    *,
    shapes_of: nn.Module | None = None,
) -> Survey:
    """Run a model over all of the data, whole.

    Args:
        model: in eval mode, without gradients.
        calibration: the data.
        begin: called with every batch before the model is.
        shapes_of: a model that ``model`` is a copy of, :func:`~sparse_accel.calibration.shapes.without_values`: the
            batches go to its device, and what is found is told of its modules.

    Raises:
        ValueError: the model fails on a batch.
    """
    if shapes_of is not None:
        with ShapesAlone():
            return _renamed(_survey(model, calibration, begin, device_of(shapes_of)), model, shapes_of)
    return _survey(model, calibration, begin, device_of(model))


def _renamed(found: Survey, of: nn.Module, model: nn.Module) -> Survey:
    """What was found of a copy, as that of the model."""
    twins = dict(zip(of.modules(), model.modules(), strict=True))
    out = Survey()
    out.least = {twins[module]: count for module, count in found.least.items()}
    out.most = {twins[module]: count for module, count in found.most.items()}
    out.first = {twins[module]: when for module, when in found.first.items()}
    out.stateful = {twins[module] for module in found.stateful}
    return out


def _survey(
    model: nn.Module, calibration: Calibration, begin: Callable[[Any], None], device: torch.device | None
) -> Survey:
    out = Survey()
    own = device_of(model)
    clock = itertools.count()
    calls: dict[nn.Module, list[int]] = {}

    def hook(module: nn.Module, args: Any) -> None:
        calls.setdefault(module, []).append(next(clock))

    handles = [module.register_forward_pre_hook(hook) for module in model.modules()]
    first = True
    try:
        with torch.no_grad(), eval_mode(model):
            for batch in calibration.batches(device):
                calls.clear()
                begin(batch)
                before = _state(model) if first else {}
                _run(model, batch if own is None or own == device else to_device(batch, own))
                for module in model.modules():
                    count = len(calls.get(module, ()))
                    out.least[module] = count if first else min(out.least[module], count)
                    out.most[module] = max(out.most.get(module, 0), count)
                if first:
                    out.first = dict(calls)
                    left = {module for module, state in _state(model).items() if not _same(state, before[module])}
                    out.stateful = {module for module in model.modules() if not left.isdisjoint(module.modules())}
                first = False
    finally:
        for handle in handles:
            handle.remove()
    return out


def _state(model: nn.Module) -> dict[nn.Module, list[tuple[Tensor, int]]]:
    """The tensors in attributes and buffers of the modules, with their versions; compared by identity."""
    return {
        module: [
            (tensor, 0 if tensor.is_inference() else tensor._version)
            for key, item in vars(module).items()
            if not (
                key in ("_parameters", "_modules") or isinstance(item, _PLAIN) or (type(item) in _DICTS and not item)
            )
            for tensor in tensors_inside(item)
        ]
        for module in model.modules()
    }


def _same(now: Sequence[tuple[Tensor, int]], before: Sequence[tuple[Tensor, int]]) -> bool:
    pairs = zip(now, before, strict=False)
    return len(now) == len(before) and all(a is b and version == old for (a, version), (b, old) in pairs)


def _run(model: nn.Module, batch: Any) -> None:
    try:
        run_model(model, batch)
    except (TypeError, RuntimeError, AttributeError, IndexError) as error:
        hint = ""
        if isinstance(batch, (tuple, list)) and len(batch) > 1:
            hint = (
                f" of {len(batch)} positional inputs (if not all of them are the model's, say "
                "Calibration(data, select=lambda item: item[0]))"
            )
        raise ValueError(
            f"calibration: {type(model).__name__} fails on a batch{hint}: {type(error).__name__}: {error}"
        ) from error


class Blocks(NamedTuple):
    """A way to cut the forward pass into pieces that are finished one after the other.

    Attributes:
        units: the blocks.
        parts: of each, see :func:`find_parts`.
        stem: what convolutions and norms are called before the first block.
    """

    units: list[nn.Module]
    parts: list[list[nn.Module]]
    stem: list[nn.Module]

    def renamed(self, twin: Callable[[nn.Module], nn.Module]) -> Blocks:
        """The same of another model."""
        parts = [[*map(twin, own)] for own in self.parts]
        return Blocks([*map(twin, self.units)], parts, [*map(twin, self.stem)])


WHOLE = Blocks([], [], [])  # no pieces


def find_units(
    model: nn.Module, pruned: set[nn.Module], order: Mapping[nn.Module, Sequence[int]], outer: int = 0
) -> list[nn.Module]:
    """Blocks that hold modules to prune and that the forward pass calls once each, in the order of the calls.

    A block is an item of a ModuleList or Sequential; of nested ones the innermost, unless it has no others beside it.

    Args:
        model: with the blocks.
        pruned: modules that will change.
        order: of the modules that every batch calls exactly once, when the first batch did.
        outer: how often the innermost ones give way to the item around them, where there is one.
    """

    def inside(module: nn.Module, item: bool) -> tuple[list[nn.Module], int]:
        found = [inside(child, isinstance(module, _CONTAINERS)) for child in module.children()]
        units, height = [unit for own, _ in found for unit in own], max((own for _, own in found), default=0)
        if not (item and len(order.get(module, ())) == 1 and any(part in pruned for part in module.modules())):
            return units, height
        if len(units) <= 1:
            return [module], 0
        return ([module] if height < outer else units), height + 1

    units = dict.fromkeys(inside(model, False)[0])
    return sorted(units, key=lambda unit: order[unit][0])


def find_blocks(model: nn.Module, pruned: set[nn.Module], order: Mapping[nn.Module, Sequence[int]]) -> list[Blocks]:
    """The innermost blocks, then those around them, as far as there are any; then all of these without a stem.

    Whether all that follows a block reads nothing of what came before it shows in passes over the data only: the items
    of a branch inside a residual block, such as the convolution of its shortcut, are none.

    Args:
        model, pruned, order: as for :func:`find_units`.
    """
    found: list[Blocks] = []
    for outer in itertools.count():
        units = find_units(model, pruned, order, outer)
        if not units or (found and units == found[-1].units):
            break
        found.append(Blocks(units, find_parts(units, pruned, order), _stem(model, units, order)))
    return found + [own._replace(stem=[]) for own in found if own.stem]


def _stem(model: nn.Module, units: Sequence[nn.Module], order: Mapping[nn.Module, Sequence[int]]) -> list[nn.Module]:
    """Modules with tensors that are called once, before the first block and outside of all, if they hold a convolution.

    (Elsewhere, as in Transformers, there is little before the first block, of which all others read.)
    """
    inside = {module for unit in units for module in unit.modules()}
    before = [
        module
        for module in model.modules()
        if module not in inside
        and any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
        and len(order.get(module, ())) == 1
        and order[module][0] < order[units[0]][0]
    ]
    return before if any(map(is_convolution, before)) else []


def find_parts(
    units: Sequence[nn.Module], pruned: set[nn.Module], order: Mapping[nn.Module, Sequence[int]]
) -> list[list[nn.Module]]:
    """Of every block the modules right in it, such as attention and MLP, that can be finished before the block is.

    They have modules of their own, hold some of those to prune but not all that the block does, and are called once.
    """
    own = [[child for child in unit.children() if any(True for _ in child.children())] for unit in units]
    counts = [sum(module in pruned for module in unit.modules()) for unit in units]
    return [
        [
            child
            for child in children
            if len(order.get(child, ())) == 1 and 0 < sum(module in pruned for module in child.modules()) < count
        ]
        for children, count in zip(own, counts, strict=True)
    ]
