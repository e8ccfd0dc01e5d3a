"""The neurons of experts that are stacked in parameters: each expert keeps the best of its own, equally many."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.calibration.ranks import of_all
from sparse_accel.calibration.replay.engine import Engine
from sparse_accel.calibration.slice_moments import SliceGram
from sparse_accel.calibration.slices import SliceCall, watch_slices
from sparse_accel.channels.widths import ExpertWidth
from sparse_accel.prune.select.gram import GramSelection, energy_select, gram_cosamp, gram_obs, refit
from sparse_accel.prune.select.ispasp import ispasp_select
from sparse_accel.prune.structured.choose import largest
from sparse_accel.prune.structured.layer import Settings
from sparse_accel.prune.structured.report import WidthChange
from sparse_accel.prune.structured.sites import Site

logger = logging.getLogger("sparse_accel")


class UnclearUseError(ValueError):
    """The experts' reader is not used in products of its matrices alone, so that nobody sees what it reads."""


class Readers:
    """The last matrices of a stack of experts, as linear maps ``[out, neurons]``, with the moments of what they read.

    Args:
        work: the model that is being pruned.
        width: the experts' neurons.

    Attributes:
        weight: of all experts, float64 [experts, out, neurons].
        shift: their biases, float64 [experts, out], or None.
    """

    def __init__(self, work: nn.Module, width: ExpertWidth) -> None:
        self.work, self.width, self.stack = work, width, width.stack
        self.parameter = work.get_parameter(self.stack.reader)
        self.flipped = self.stack.axes[self.stack.reader][0] == 1
        raw = self.parameter.detach().double()
        self.weight = raw.mT if self.flipped else raw
        self.bias = None if self.stack.bias is None else work.get_parameter(self.stack.bias)
        self.shift = None if self.bias is None else self.bias.detach().double()

    @property
    def nbytes(self) -> int:
        """Bytes that the moments take, and the largest of the matrices that are made of one expert's."""
        return 8 * self.stack.units**2 * (2 * self.stack.experts + 4)

    def collect(self, engine: Engine, site: Site) -> None:
        """One pass over the data that takes the moments, behind the finished blocks.

        Raises:
            UnclearUseError: on all ranks alike.
        """
        faults: list[str] = []

        def start() -> None:
            faults.clear()
            self.moments = SliceGram(
                self.stack.experts,
                self.stack.units,
                dtype=torch.float64,
                device=self.parameter.device,
                centred=self.bias is not None,
            )

        def seen(call: SliceCall) -> None:
            self.moments.update(call)

        start()
        modules = {self.stack.module: self.work.get_submodule(self.stack.module)}
        watched = {self.stack.reader: self.parameter}
        with watch_slices(self.work, watched, seen, lambda _, why: faults.append(why), engine.batches.padded):
            engine.work.stream(engine.batches, modules, _nothing, start, calls=site.calls)
        faults = [fault for rank in of_all(faults) for fault in rank]
        if faults:
            raise UnclearUseError(f"{self.stack.reader} {faults[0]}: its inputs cannot be told")
        self.moments.all_reduce_()

    def gram(self, expert: int) -> Tensor:
        """Sum of ``h hᵀ`` of what an expert reads, about its mean where there is a bias, float64 [neurons, neurons]."""
        return self.moments.parts[expert].gram[0]

    def mean(self, expert: int) -> Tensor:
        """Mean of what an expert reads, [neurons]; zero where there is no bias that could make up for it."""
        return self.moments.parts[expert].mean[0]

    def idle(self) -> list[int]:
        """Experts that read nothing, or zeros alone."""
        return [number for number, part in enumerate(self.moments.parts) if not bool(part.gram.any())]

    def norms(self, *, readers: bool) -> Tensor:
        """Squared norms of the rows that make each neuron, those of the columns that read it multiplied in on request.

        Returns:
            float64 [experts, neurons]
        """
        total = torch.zeros(self.stack.experts, self.stack.units, dtype=torch.float64, device=self.parameter.device)
        for name, (dim, table) in self.stack.axes.items():
            parameter = self.work.get_parameter(name).detach()
            if name != self.stack.reader and parameter.dim() == 3:
                rows = parameter.double().square().sum(3 - dim)  # [experts, entries]
                total += rows[:, table.to(rows.device)].sum(2)
        return total * self.weight.square().sum(1) if readers else total

    def solved(self, solver: Callable[..., GramSelection], expert: int, keep: int, ridge: float) -> GramSelection:
        """What a solver of :mod:`sparse_accel.prune.select.gram` makes of an expert's moments."""
        gram, weight = self.gram(expert), self.weight[expert]
        return solver(gram, weight @ gram, weight, block=1, keep=keep, ridge=ridge)

    def write(self, expert: int, weight: Tensor, shift: Tensor | None) -> None:
        """Put an expert's new matrix ``[out, neurons]`` and bias ``[out]`` into the model."""
        with torch.no_grad():
            self.parameter[expert].copy_(weight.T if self.flipped else weight)
            if shift is not None and self.bias is not None:
                self.bias[expert].copy_(shift)
        torch.clear_autocast_cache()


def _nothing(_name: str, _x: Tensor, _y: Any) -> None:
    pass


def prune_experts(
    width: ExpertWidth,
    keep: int,
    engine: Engine,
    sites: Mapping[str, Site],
    settings: Settings,
) -> tuple[Tensor, WidthChange]:
    """Choose the neurons of each expert, zero what reads the others, and refit.

    Each expert is a problem of its own on the inputs that are routed to it. The target is what its dense matrix makes
    of them (``"local"``). An expert without inputs keeps the neurons of the largest norms, of what makes them times of
    what reads them.

    Args:
        width: of ``work``.
        keep: neurons of each expert to keep.
        engine: the model that is being pruned, in eval mode (its readers are rewritten), and the data.
        sites: with the module that owns the stack.
        settings: see there.

    Returns:
        The neurons kept, ascending, int64 [experts, keep], and what to report.
    """
    start = time.perf_counter()
    readers = Readers(engine.work.model, width)
    kept = torch.arange(width.units, device="cpu").repeat(width.stack.experts, 1)
    note, error, target = "", None, ""
    moments = settings.refit is not None or settings.method not in ("magnitude", "random")
    try:
        if keep < width.units and moments:
            readers.collect(engine, sites[width.stack.module])
    except UnclearUseError as unclear:
        keep, note = width.units, f"{width.name}: left whole: {unclear}"
    if keep < width.units:
        idle = readers.idle() if moments else []
        kept = torch.stack([_chosen(readers, e, keep, settings, e in idle) for e in range(width.stack.experts)]).cpu()
        target = "" if settings.refit is None else "bias" if settings.refit == "bias" else "local"
        error = rewrite(readers, kept, idle, settings, moments=moments)
        if idle:
            shown = ", ".join(map(str, idle[:8])) + (", …" if len(idle) > 8 else "")
            note = (
                f"{width.name}: {len(idle)} of {width.stack.experts} experts got no calibration inputs ({shown}): "
                "they keep the neurons of the largest weights"
            )
    change = WidthChange(
        name=width.name,
        kind=width.kind,
        units=(width.units, keep),
        consumers=(width.stack.reader,),
        target=target,
        error=error,
        seconds=time.perf_counter() - start,
        note=note,
    )
    logger.info("%s: %d of %d neurons of each expert kept, %.1f s", width.name, keep, width.units, change.seconds)
    return kept, change


def _chosen(readers: Readers, expert: int, keep: int, settings: Settings, idle: bool) -> Tensor:
    """The neurons that one expert keeps, ascending, [keep]."""
    weight = readers.weight[expert]
    if settings.method == "random":
        generator = torch.Generator().manual_seed(settings.seed + readers.width.order + expert)
        score = torch.rand(readers.stack.units, generator=generator, dtype=torch.float64, device="cpu")
        return largest(score, keep, None).to(weight.device)
    if idle or settings.method == "magnitude":
        return largest(readers.norms(readers=idle)[expert], keep, None)
    if settings.method == "ispasp":
        count = readers.moments.parts[expert].count
        shift = None if readers.shift is None else readers.shift[expert]
        sums = readers.mean(expert) * count
        return ispasp_select(sums, weight, keep, settings.iterations, shift=shift, count=count).kept
    solver = {"gram_obs": gram_obs, "gram_cosamp": gram_cosamp, "energy": energy_select}[settings.method]
    return readers.solved(solver, expert, keep, settings.ridge).kept


def rewrite(
    readers: Readers, kept: Tensor, idle: list[int], settings: Settings, *, moments: bool
) -> tuple[float, float] | None:
    """New matrices for all experts; their relative squared error before and after, None without moments."""
    energy = before = after = 0.0
    for expert, own in enumerate(kept.to(readers.weight.device)):
        old, shift = readers.weight[expert], None
        cut = torch.zeros_like(old)
        cut[:, own] = old[:, own]
        new = cut
        if moments and expert not in idle:
            gram, count = readers.gram(expert), readers.moments.parts[expert].count
            if settings.refit not in (None, "bias"):
                new = torch.zeros_like(old)
                new[:, own] = refit(gram, old @ gram, old, own, ridge=settings.ridge)
            mean = readers.mean(expert) if readers.bias is not None else torch.zeros_like(old[0])
            if readers.shift is not None and settings.refit is not None:
                shift = readers.shift[expert] + (old - new) @ mean
            energy += float((old @ gram * old).sum())
            before += float(((old - cut) @ gram * (old - cut)).sum() + count * ((old - cut) @ mean).square().sum())
            rest = (old - new) @ mean if shift is None else torch.zeros_like(old[:, 0])
            after += float(((old - new) @ gram * (old - new)).sum() + count * rest.square().sum())
        readers.write(expert, new, shift)
    return (max(before, 0.0) / energy, max(after, 0.0) / energy) if energy > 0 else None
