"""Which channels can go: everything from which no output is reached.

A channel is live if an output of the model shows it, or if a live channel reads it with a nonzero weight and its
value is not a constant that the reader's bias can take over. All others can be removed together: their readers hold
zeros, or are dead themselves. A few of them are kept for the shape's sake: every layer keeps a channel, and the groups
of a grouped convolution stay equally wide. Nothing live reads those, so what they read can go all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparse_accel.channels.graph import ChannelGraph, Read
from sparse_accel.channels.slots import PINNED


@dataclass
class Decision:
    """The classes of a graph's slots that are kept.

    Attributes:
        roots: class of every slot.
        live: whether a class reaches an output, indexed by its root.
        kept: whether a class is kept.
        graph: the graph decided on.
    """

    roots: np.ndarray
    live: np.ndarray
    kept: np.ndarray
    graph: ChannelGraph

    def keeps(self, labels: Tensor) -> Tensor:
        """Which of the slots stay, bool, same shape."""
        return self._look_up(self.kept, labels)

    def reaches(self, labels: Tensor) -> Tensor:
        """Which of the slots reach an output, bool, same shape."""
        return self._look_up(self.live, labels)

    def _look_up(self, table: np.ndarray, labels: Tensor) -> Tensor:
        return torch.from_numpy(table[self.roots[labels.reshape(-1).numpy()]]).reshape(labels.shape)

    def folded(self, read: Read) -> Tensor:
        """Input channels of a read that go although it reads them: constants for its bias, [C]."""
        return ~self.keeps(read.inputs) & read.foldable & (read.values != 0)


def decide(graph: ChannelGraph, round_to: int = 1) -> Decision:
    """Find the channels to keep.

    Args:
        graph: of the model.
        round_to: every layer keeps a multiple of so many outputs, or all.
    """
    roots = graph.slots.roots()
    live = np.zeros(len(roots), dtype=bool)
    live[PINNED] = True
    for norm in graph.response_norms:  # the mean over the channels is what it is because of all that are not zero
        live[roots[norm.slots[~norm.zero].numpy()]] = True
    decision = Decision(roots, live, live.copy(), graph)
    changed = True
    while changed:
        _spread(decision)
        changed = _keep_one_each(decision) or _balance(decision) or _round(decision, round_to)
    return decision


def _spread(decision: Decision) -> None:
    """Mark what live channels read until nothing changes; last reads first, which is one pass for most nets."""
    live, roots = decision.live, decision.roots
    changed = True
    while changed:
        changed = False
        for read in reversed(decision.graph.reads):
            active = decision.reaches(read.output_blocks)  # [groups, O / groups]
            # A constant that is kept anyway is not folded: it must stay right.
            fixed = ~read.foldable | decision.keeps(read.inputs)
            needed = (read.nonzero & active[:, :, None]).any(1).reshape(-1) & fixed
            found = roots[read.inputs[needed].numpy()]
            if not live[found].all():
                live[found] = True
                decision.kept[found] = True
                changed = True


def _revive(decision: Decision, slots: Tensor, count: int) -> None:
    """Keep the first ``count`` of the slots that are not kept."""
    dead = slots[~decision.keeps(slots)]
    decision.kept[decision.roots[dead[:count].numpy()]] = True


def _keep_one_each(decision: Decision) -> bool:
    """Every axis of every tensor keeps at least one channel."""
    changed = False
    for slots in decision.graph.axes.values():
        if slots.numel() and not bool(decision.keeps(slots).any()):
            _revive(decision, slots, 1)
            changed = True
    return changed


def _balance(decision: Decision) -> bool:
    """Groups of a convolution keep equally many inputs and outputs, or vanish whole; cut parts stay equal."""
    changed = False
    for read in decision.graph.reads:
        if read.groups > 1:
            sides = [read.input_blocks, read.output_blocks]
            counts = [decision.keeps(side).sum(1) for side in sides]
            used = (counts[0] > 0) | (counts[1] > 0)
            for side, count in zip(sides, counts, strict=True):
                changed |= _fill(decision, side[used], count[used])
    for parts in decision.graph.balanced:
        changed |= _fill(decision, parts, decision.keeps(parts).sum(1))
    return changed


def _fill(decision: Decision, blocks: Tensor, counts: Tensor) -> bool:
    """Bring every row of ``blocks`` up to the count of the fullest, and to one at least."""
    target = max(int(counts.max()), 1) if counts.numel() else 0
    changed = False
    for block, count in zip(blocks, counts.tolist(), strict=True):
        if count < target:
            _revive(decision, block, target - count)
            changed = True
    return changed


def _round(decision: Decision, multiple: int) -> bool:
    """Every layer keeps a multiple of outputs, or all: of those that could go, the ones with the largest weights."""
    changed = False
    for read in decision.graph.reads if multiple > 1 else ():
        kept = decision.keeps(read.outputs)
        count = int(kept.sum())
        target = min(len(kept), -(-count // multiple) * multiple)
        if count < target:
            weight = decision.graph.tensors[read.weight].detach()
            weight = weight.transpose(0, 1) if read.transposed else weight
            sizes = weight.flatten(1).double().square().sum(1).cpu()
            order = (
                torch.arange(len(kept), device="cpu")
                if len(sizes) != len(kept)
                else sizes.argsort(descending=True, stable=True)
            )
            _revive(decision, read.outputs[order], target - count)
            changed = True
    return changed
