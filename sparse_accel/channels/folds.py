"""Where constants may be absorbed, once all runs have been seen: the calls of one layer in several runs are one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from sparse_accel.channels.graph import ChannelGraph, Read
from sparse_accel.channels.slots import Value


def settle_folds(graph: ChannelGraph, absorbers: Iterable[tuple[Value, str]], uses: Mapping[str, int]) -> None:
    """Decide for every read where a constant may be absorbed: its bias, the running mean after it, or nowhere.

    Args:
        graph: of the runs in eval mode.
        absorbers: a linear map's result, and the running mean that takes it.
        uses: of parameters and buffers in one run, the most.
    """
    for value, mean in absorbers:
        if value.uses == 1 and uses[mean] == 1 and value.source is not None:
            graph.reads[value.source].norm = mean
    merge_runs(graph)
    for read in graph.reads:
        alone = sum(other.weight == read.weight for other in graph.reads) == 1
        if read.bias is not None:
            alone = alone and uses.get(read.bias, 0) == 1
        read.bias_ok = alone and (read.bias_ok or read.norm is not None)
        if not read.bias_ok:
            read.foldable = read.foldable & (read.values == 0)
            read.values = read.values * read.foldable


def merge_runs(graph: ChannelGraph) -> None:
    """Make one read of the same call in several runs.

    The n-th call of a weight in one run is that of the others if it reads and makes the same channels. A constant can
    be absorbed only if it is the same in all runs, and by what takes it in all of them.
    """
    merged: list[Read] = []
    known: dict[tuple[tuple[str, str, str | None], int], Read] = {}
    counts: dict[tuple[int | None, tuple[str, str, str | None]], int] = {}
    for read in graph.reads:
        place = (read.module, read.weight, read.bias)
        number = counts.get((read.run, place), 0)
        counts[read.run, place] = number + 1
        first = known.setdefault((place, number), read)
        sides = ((first.inputs, read.inputs), (first.outputs, read.outputs))
        if first is read or not all((graph.slots.roots(a) == graph.slots.roots(b)).all() for a, b in sides):
            merged.append(read)
            continue
        same = torch.isclose(first.values, read.values, rtol=1e-6, atol=0.0)  # batches of other sizes, other last bits
        first.foldable = first.foldable & read.foldable & same
        first.values = first.values * first.foldable
        first.bias_ok = first.bias_ok and read.bias_ok
        first.norm = first.norm if first.norm == read.norm else None
    graph.reads = merged
