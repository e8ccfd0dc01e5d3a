"""The finished front of a model, run once: the outputs of its last finished block stand in for all before it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparse_accel.calibration.batches import Batches
from sparse_accel.calibration.data import stream
from sparse_accel.calibration.replay.store import CannotStoreError, Store
from sparse_accel.calibration.survey import WHOLE, Blocks
from sparse_accel.channels.call import tree_tensors

logger = logging.getLogger("sparse_accel")

NO_BLOCKS = (
    "it has no blocks (items of a ModuleList or Sequential that every batch calls exactly once and that leave no "
    "tensors in their attributes)"
)
CHANGED = "the batches differ from pass to pass"


class _CannotReplayError(Exception):
    """The front has to run as a whole."""


class Front:
    """One model in passes over the data, the finished blocks at its front replaced by their outputs.

    Of every batch the outputs of the last finished block are kept. The block itself is not called, nor any before it:
    those give tensors without values (on the device "meta"). What needs such values fails: those were no blocks, and
    the ones around them take their place. Where that fails, too, the model is run as a whole, from its inputs, in this
    pass and all later ones; :attr:`reason` says why. While a block is at hand, the outputs of its finished parts are
    kept beside it.

    Args:
        model: the model.
        blocks: to try, one after the other, see :func:`~sparse_accel.calibration.survey.find_blocks`.
        store: for the outputs; a limit of 0 bytes there turns replay off.

    Attributes:
        blocks: the ones taken.
        finished: blocks that will not change.
        reason: why the model is run as a whole; empty while it is not.
    """

    def __init__(self, model: nn.Module, blocks: Iterable[Blocks], store: Store) -> None:
        self.model = model
        self.around = list(blocks) if store.limit else []  # what is still to be tried
        self.blocks = self.around.pop(0) if self.around else WHOLE
        self.settled: set[nn.Module] = set()  # parts of the block at hand that will not change
        self.kept: dict[int, list[Any]] = {}  # by batch: keys of the outputs of parts
        self.store = store
        self.key = object()  # of what it keeps there
        self.reason = "" if self.units else NO_BLOCKS if store.limit else "activation_memory is 0"
        self.finished = 0
        self._told: tuple[set[nn.Module], set[nn.Module]] = set(), set()
        self.level: dict[int, int] = {}  # by batch: the block whose output is kept
        # By block (those of the stem: -1, -2, ...) and batch: outputs without values.
        self.shapes: dict[tuple[int, int], Any] = {}

    @property
    def units(self) -> list[nn.Module]:
        """The blocks; none where the model is run as a whole."""
        return self.blocks.units

    def advance(self, done: set[nn.Module], pruned: set[nn.Module]) -> None:
        """Tell which of the pruned modules will not change any more."""
        self._told = done, pruned
        while self.finished < len(self.units):
            if any(part in pruned and part not in done for part in self.units[self.finished].modules()):
                break
            self.finished += 1
        own = self.blocks.parts[self.finished] if self.finished < len(self.units) else []
        self.settled = {part for part in own if not any(m in pruned and m not in done for m in part.modules())}

    def twin(self, model: nn.Module) -> Front:
        """The front of a copy of the model, with the same outputs of the same finished blocks: both keep them once."""
        names = {module: name for name, module in self.model.named_modules()}

        def of(module: nn.Module) -> nn.Module:
            return model.get_submodule(names[module])

        other = copy.copy(self)  # what is kept is shared
        other.model, other.blocks = model, self.blocks.renamed(of)
        other.around = [blocks.renamed(of) for blocks in self.around]
        other.settled = set(map(of, self.settled))
        other._told = set(map(of, self._told[0])), set(map(of, self._told[1]))
        return other

    def clear(self) -> None:
        """Forget all outputs: the front changes."""
        for batch in self.level:
            self.store.drop((self.key, batch))
        for keys in self.kept.values():
            for key in keys:
                self.store.drop(key)
        self.kept.clear()
        self.settled = set()
        self.level.clear()
        self.shapes.clear()
        self.finished = 0

    def give_up(self, reason: str) -> None:
        """Run the model as a whole from now on."""
        self.clear()
        self.blocks, self.around = WHOLE, []
        self.reason = self.reason or reason

    def go_out(self, reason: str) -> None:
        """Take the blocks around these; without any, :meth:`give_up`."""
        if not self.around:
            self.give_up(reason)
            return
        self.clear()
        # A twin counts by the blocks before: from here on each keeps its own.
        self.key, self.level, self.kept, self.shapes = object(), {}, {}, {}
        self.blocks = self.around.pop(0)
        self.advance(*self._told)

    def stream(
        self,
        batches: Batches,
        modules: Mapping[str, nn.Module],
        visit: Callable[[str, Tensor, Any], None],
        restart: Callable[[], None],
        *,
        calls: int = 0,
    ) -> None:
        """:func:`sparse_accel.calibration.data.stream`; ``restart`` is called where the visits start again.

        Modules may be called by no batch.
        """

        def shown(name: str, x: Tensor, output: Any) -> None:
            check_values([x])
            visit(name, x, output)

        def run() -> None:
            stream(self.model, batches, modules, shown, calls=calls, required=False)

        replayed([self], batches, run, restart)

    @contextmanager
    def replaced(self, batches: Batches) -> Iterator[None]:
        """The finished blocks replaced; :func:`replayed` also takes care of what goes wrong."""
        before: list[tuple[nn.Module, Any]] = []
        try:
            calls = [
                (unit, self._call(number, unit, batches)) for number, unit in enumerate(self.units[: self.finished])
            ]
            for number in range(max(0, self.finished - 1), min(self.finished + 1, len(self.units))):
                own = self.blocks.parts[number]
                calls += [(part, self._part(number, i, part, batches)) for i, part in enumerate(own)]
            done, pruned = self._told
            stem = self.blocks.stem if self.finished and pruned.isdisjoint({*self.blocks.stem} - done) else []
            calls += [(module, self._stem(number, module, batches)) for number, module in enumerate(stem)]
            for module, call in calls:
                before.append((module, module.__dict__.get("_compiled_call_impl")))
                module.__dict__["_compiled_call_impl"] = call  # what Module.__call__ asks for first: no hook is run
            yield
        finally:
            for unit, old in before:
                if old is None:
                    del unit.__dict__["_compiled_call_impl"]
                else:
                    unit.__dict__["_compiled_call_impl"] = old

    def _call(self, number: int, unit: nn.Module, batches: Batches) -> Callable[..., Any]:
        """What calling a finished block does."""
        original = unit.__dict__.get("_compiled_call_impl") or unit._call_impl
        met: set[int] = set()  # batches, in this pass

        def call(*args: Any, **kwargs: Any) -> Any:
            batch = batches.number
            if batch in met:
                raise _CannotReplayError(f"{type(unit).__name__} is called more than once for a batch")
            met.add(batch)
            level = self.level.get(batch, -1)
            if number < level:
                return self.shapes[number, batch]
            if number == level:
                return self.store.get((self.key, batch))
            versions = [(tensor, tensor._version) for tensor in tree_tensors((args, kwargs))]
            output = original(*args, **kwargs)
            if any(tensor._version != version for tensor, version in versions):
                raise _CannotReplayError(f"{type(unit).__name__} changes its inputs")
            self.shapes[number, batch] = _without_values(output)
            if number == self.finished - 1:
                try:
                    self.store.put((self.key, batch), output)
                except CannotStoreError as error:
                    raise CannotStoreError(f"outputs of {type(unit).__name__}: {error}") from error
                self.level[batch] = number
                for key in self.kept.pop(batch, []):
                    self.store.drop(key)
            return output

        return call

    def _stem(self, number: int, module: nn.Module, batches: Batches) -> Callable[..., Any]:
        """What calling a module before the first block does: where a block's output is there, nothing."""
        original = module.__dict__.get("_compiled_call_impl") or module._call_impl

        def call(*args: Any, **kwargs: Any) -> Any:
            key = -1 - number, batches.number
            if self.level.get(batches.number, -1) >= 0 and key in self.shapes:
                return self.shapes[key]
            output = original(*args, **kwargs)
            self.shapes[key] = _without_values(output)
            return output

        return call

    def _part(self, number: int, index: int, part: nn.Module, batches: Batches) -> Callable[..., Any]:
        """What calling a part does, of the block at hand or of the one whose outputs are taken in this pass."""
        original = part.__dict__.get("_compiled_call_impl") or part._call_impl
        met: set[int] = set()  # batches, in this pass

        def call(*args: Any, **kwargs: Any) -> Any:
            batch = batches.number
            key = (self.key, batch, number, index)
            known = key in self.store
            if known and batch in met:
                raise _CannotReplayError(f"{type(part).__name__} is called more than once for a batch")
            met.add(batch)
            if known:
                return self.store.get(key)
            versions = [(tensor, tensor._version) for tensor in tree_tensors((args, kwargs))]
            output = original(*args, **kwargs)
            if part in self.settled and all(tensor._version == version for tensor, version in versions):
                with suppress(CannotStoreError):  # what returns more than tensors is run again
                    self.store.put(key, output)
                    self.kept.setdefault(batch, []).append(key)
            return output

        return call


def replayed(fronts: Sequence[Front], batches: Batches, run: Callable[[], None], restart: Callable[[], None]) -> None:
    """One pass over the data with the finished fronts of some models replaced by their outputs.

    Args:
        fronts: of the models that the pass runs.
        batches: the data.
        run: the pass.
        restart: called before the pass is made again with whole models, where replay turns out to be impossible.
    """
    fronts = [front for front in dict.fromkeys(fronts) if front.finished or front.settled]
    if batches.changed:  # no pass for nothing: each may be the only one over its data
        for front in fronts:
            front.give_up(CHANGED)
        fronts = []
    while fronts:
        try:
            with ExitStack() as stack:
                for front in fronts:
                    stack.enter_context(front.replaced(batches))
                run()
            if batches.changed:
                raise _CannotReplayError(CHANGED)
            return
        except Exception as error:  # a real fault shows again below
            logger.info("not run on the outputs of %s: %s", ", ".join(map(_kinds, fronts)), error)
            why = str(error)
            if not isinstance(error, (_CannotReplayError, CannotStoreError)):
                why = f"what follows the blocks does not run on the last one's output ({type(error).__name__}: {error})"
            for front in fronts:
                if batches.changed or isinstance(error, CannotStoreError):
                    front.give_up(why)
                else:
                    front.go_out(why)
        restart()
        fronts = [front for front in fronts if front.finished or front.settled]
    run()


def _without_values(output: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device="meta"), output)


def _kinds(front: Front) -> str:
    return " and ".join(sorted({type(unit).__name__ for unit in front.units}))


def check_values(tensors: Sequence[Tensor]) -> None:
    """Raise where a tensor has no values: a block that was not run would have had to make them."""
    if any(tensor.is_meta for tensor in tensors):
        raise _CannotReplayError("a layer reads past the last finished block")
