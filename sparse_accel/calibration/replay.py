"""The pruned front of a model, run once: the outputs of its last finished block stand in for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparse_accel.calibration.batches import Batches
from sparse_accel.calibration.data import stream
from sparse_accel.channels.call import tree_tensors

logger = logging.getLogger("sparse_accel")

_CONTAINERS = (nn.ModuleList, nn.Sequential)
_PLAIN = (type(None), bool, int, float, str)


class _CannotReplayError(Exception):
    """The front has to run as a whole."""


def find_units(model: nn.Module, pruned: set[nn.Module], order: Mapping[nn.Module, list[int]]) -> list[nn.Module]:
    """Blocks that hold modules to prune and that the forward pass calls once each, in the order of the calls.

    A block is an item of a ModuleList or Sequential; of nested ones the innermost, unless it has no others beside it.
    """

    def inside(module: nn.Module, item: bool) -> list[nn.Module]:
        children = [unit for child in module.children() for unit in inside(child, isinstance(module, _CONTAINERS))]
        once = len(order.get(module, ())) == 1 and any(part in pruned for part in module.modules())
        return [module] if item and once and len(children) <= 1 else children

    units = dict.fromkeys(inside(model, False))
    return sorted(units, key=lambda unit: order[unit][0])


class Front:
    """Runs passes over the data, the finished blocks at the front replaced by their outputs.

    Only the outputs of the last finished block are kept. Blocks before it return tensors without values (on the
    device "meta"): what would need them fails, and the front is then run as a whole from there on.

    Args:
        model: the model.
        units: its blocks, see :func:`find_units`.
        limit: of the bytes kept; 0 keeps none.
    """

    def __init__(self, model: nn.Module, units: Sequence[nn.Module], limit: int) -> None:
        self.model = model
        self.units = list(units) if limit else []
        self.limit = limit
        self.finished = 0  # blocks that will not change
        self.held = -1  # the block whose outputs are kept
        self.kept: dict[int, Any] = {}  # by batch
        self.shapes: dict[tuple[int, int], Any] = {}  # by block and batch: outputs without values
        self.nbytes = 0

    def advance(self, done: set[nn.Module], pruned: set[nn.Module]) -> None:
        """Tell which of the pruned modules will not change any more."""
        while self.finished < len(self.units):
            if any(part in pruned and part not in done for part in self.units[self.finished].modules()):
                break
            self.finished += 1

    def clear(self) -> None:
        """Forget all outputs: the front changes."""
        self.kept.clear()
        self.shapes.clear()
        self.held, self.finished, self.nbytes = -1, 0, 0

    def stream(
        self,
        batches: Batches,
        modules: Mapping[str, nn.Module],
        visit: Callable[[str, Tensor, Any], None],
        restart: Callable[[], None],
        *,
        stop: bool,
    ) -> None:
        """:func:`sparse_accel.calibration.data.stream`; ``restart`` is called where the visits start again.

        Modules may be called by no batch.
        """
        if self.finished:
            try:
                with self._replaced(batches):
                    stream(self.model, batches, modules, visit, stop=stop, required=False)
                if batches.changed:
                    raise _CannotReplayError("the batches differ from pass to pass")
                self.held = self.finished - 1
                return
            except Exception as error:  # a real fault shows again below
                logger.info("the front of the model is run as a whole: %s", error)
            self.clear()
            self.units = []
            restart()
        stream(self.model, batches, modules, visit, stop=stop, required=False)

    @contextmanager
    def _replaced(self, batches: Batches) -> Iterator[None]:
        before: list[tuple[nn.Module, Any]] = []
        try:
            for number, unit in enumerate(self.units[: self.finished]):
                forward = self._forward(number, unit, batches)
                if forward is not None:
                    before.append((unit, unit.__dict__.get("forward")))
                    unit.forward = forward
            yield
        finally:
            for unit, old in before:
                if old is None:
                    del unit.forward
                else:
                    unit.forward = old

    def _forward(self, number: int, unit: nn.Module, batches: Batches) -> Callable[..., Any] | None:
        """What a finished block does in place of its forward; None: its forward."""
        original = unit.forward
        met: set[int] = set()  # batches, in this pass

        def once() -> None:
            if batches.number in met:
                raise _CannotReplayError(f"{type(unit).__name__} is called more than once for a batch")
            met.add(batches.number)

        def hollow(*args: Any, **kwargs: Any) -> Any:
            once()
            return self.shapes[number, batches.number]

        def replay(*args: Any, **kwargs: Any) -> Any:
            once()
            return pytree.tree_map_only(Tensor, Tensor.clone, self.kept[batches.number])

        def capture(*args: Any, **kwargs: Any) -> Any:
            once()
            versions = [(tensor, tensor._version) for tensor in tree_tensors((args, kwargs))]
            output = original(*args, **kwargs)
            if any(tensor._version != version for tensor, version in versions):
                raise _CannotReplayError(f"{type(unit).__name__} changes its inputs")
            self._keep(number, batches.number, output)
            return output

        if number < self.held:
            return hollow
        if number == self.held:
            return replay
        return capture if number == self.finished - 1 else None

    def _keep(self, number: int, batch: int, output: Any) -> None:
        leaves = pytree.tree_leaves(output)
        if any(not isinstance(leaf, (Tensor, *_PLAIN)) or getattr(leaf, "is_meta", False) for leaf in leaves):
            raise _CannotReplayError("a block returns more than tensors")
        self.nbytes -= sum(leaf.nbytes for leaf in pytree.tree_leaves(self.kept.get(batch)) if isinstance(leaf, Tensor))
        self.nbytes += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        if self.nbytes > self.limit:
            raise _CannotReplayError(f"outputs of a block take more than activation_memory ({self.limit} bytes)")
        self.kept[batch] = pytree.tree_map_only(Tensor, Tensor.clone, output)
        self.shapes[number, batch] = pytree.tree_map_only(
            Tensor, lambda tensor: torch.empty_like(tensor, device="meta"), output
        )
