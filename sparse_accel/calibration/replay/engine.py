"""A dense model and the one that is being pruned, each with its finished front."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import nn

from sparse_accel.calibration.batches import Batches
from sparse_accel.calibration.replay.front import Front
from sparse_accel.calibration.replay.store import Store
from sparse_accel.calibration.survey import find_blocks


class Engine:
    """The dense model and the one being pruned, side by side in passes over the data.

    Args:
        dense: the model as it was.
        work: a copy of it that is being pruned, with the same names.
        batches: the data.
        order: of the modules of ``work`` that every batch calls exactly once, when the first batch did.
        limit: bytes of outputs of finished blocks to keep in memory (the rest is in files), see
            :class:`~sparse_accel.calibration.store.Store`; 0 turns replay off.

    Attributes:
        dense, work: their fronts.
        batches: the data.

    Use it as a context: the files of the outputs go at its end.
    """

    def __init__(
        self,
        dense: nn.Module,
        work: nn.Module,
        batches: Batches,
        order: Mapping[nn.Module, Sequence[int]],
        limit: int,
    ) -> None:
        self.order = order
        self.store = Store(limit)
        self.batches = batches
        self.dense = Front(dense, [], self.store)
        self.work = Front(work, [], self.store) if work is not dense else self.dense
        self._pruned: set[str] = set()
        self.widest = 0  # steps that were planned at the most

    def plan(self, pruned: Sequence[Sequence[str]]) -> None:
        """Find the blocks, and begin at the front.

        Args:
            pruned: names of the modules that each step watches and changes.
        """
        model = self.work.model
        self._pruned = {name for names in pruned for name in names}
        changing = {model.get_submodule(name) for name in self._pruned}
        names = {module: name for name, module in model.named_modules()}
        self.widest = max(self.widest, sum(map(bool, pruned)))
        self.work.clear()
        self.dense.clear()
        blocks = find_blocks(model, changing, self.order)
        dense = self.dense.model
        twins = [own.renamed(lambda module: dense.get_submodule(names[module])) for own in blocks]
        self.dense = Front(dense, twins, self.store)
        self.work = Front(model, blocks, self.store) if model is not dense else self.dense

    def advance(self, rest: Sequence[Sequence[str]]) -> None:
        """Tell which modules later steps will watch or change."""
        left = {name for names in rest for name in names}
        for front in dict.fromkeys((self.dense, self.work)):
            pruned = {front.model.get_submodule(name) for name in self._pruned}
            front.advance(pruned - {front.model.get_submodule(name) for name in left}, pruned)

    def against(self, dense: nn.Module) -> Engine:
        """This engine with another model in the dense one's place.

        Args:
            dense: a copy of the model that is being pruned, whose finished blocks stay the same for as long as it is
                used: it takes their outputs, too.
        """
        other = copy.copy(self)
        other.dense = self.work.twin(dense)
        return other

    def notes(self) -> list[str]:
        """Why a model was run as a whole for every step, in words; nothing where it was not, or by request."""
        return whole_notes([self.work, self.dense], self.widest)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.store.close()


def whole_notes(fronts: Sequence[Front], steps: int) -> list[str]:
    """A note for the first model that several steps had to run as a whole; none where replay was turned off."""
    reasons = [front.reason for front in fronts if front.reason and front.store.limit]
    return [f"every pass runs the model from its inputs: {reasons[0]}"] if reasons and steps > 1 else []
