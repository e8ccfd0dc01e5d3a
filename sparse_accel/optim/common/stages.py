"""The operator of a penalty that consists of several, on the tensors of a step: in any diagonal metric, on sharded
parameters, and with steps that are known on the device alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_accel import ops
from sparse_accel.groups import Grouping, GroupLayout
from sparse_accel.optim.steps.across import Parts
from sparse_accel.optim.steps.prox import metric_parts, metric_point, proximal_parts, proximal_point
from sparse_accel.penalties import Penalty, Stage, cached_layout
from sparse_accel.sharding import shard_dims, shard_groups


class Cut(NamedTuple):
    """A tensor of the step with what cuts it."""

    param: Tensor
    grouping: Grouping  # its ``by`` is that of the penalty
    stages: Sequence[Stage]  # of the penalty, for this tensor

    def layout(self, work: Tensor, by: str) -> tuple[GroupLayout, bool]:
        """Of the groups ``by`` in the memory of ``work``, and whether that has such a layout (else a copy has)."""
        here = self.grouping._replace(by=by).of_part(shard_dims(self.param))
        return cached_layout(work.shape, work.stride(), here)

    def across(self, by: str) -> tuple[tuple[Any, ...], int]:
        """The groups of processes over which groups lie, and the number of elements of a whole one if there are any."""
        apart = self.grouping._replace(by=by).group_dims(self.param.dim())
        size = 1
        for dim, length in enumerate(self.param.shape):
            size *= 1 if dim in apart else length
        return shard_groups(self.param, apart), size


def applies(stages: Sequence[Stage], param: Tensor) -> bool:
    """Whether one of the stages is about the parameter."""
    return any(Grouping(stage.by).applies_to(param) for stage in stages)


def cut_of(penalty: Penalty, grouping: Grouping, param: Tensor, scale: float) -> Cut:
    """A parameter under a penalty whose groups count ``scale`` times."""
    return Cut(param, grouping, penalty.scaled(scale).stages)


def run_stages(
    cuts: Sequence[Cut], work: Sequence[Tensor], taus: Sequence[Tensor], metrics: Sequence[Tensor] | None
) -> None:
    """Replace every x of ``work`` by the minimizer of ``tau value(w) + 1/2 <w - x, P (w - x)>``, in place.

    Args:
        cuts: of the tensors, with stages of the same kinds.
        work: x, dense, float32 or float64.
        taus: ``[]`` float64 each, where the clocks of the optimizer are.
        metrics: P > 0, as ``work``; None: P = 1.
    """
    taus, metrics = list(taus), None if metrics is None else list(metrics)
    for number in range(len(cuts[0].stages) if cuts else 0):
        which = [i for i, cut in enumerate(cuts) if Grouping(cut.stages[number].by).applies_to(cut.param)]
        if which and cuts[0].stages[number].kind in ("soft", "hard", "weights"):
            _shrink(number, which, cuts, work, taus, metrics)
            continue
        for i in which:
            stage, x = cuts[i].stages[number], work[i]
            if stage.kind == "ridge":
                more = taus[i] * stage.strength
                if metrics is None:
                    x.div_((1 + more).to(x))
                    taus[i] = taus[i] / (1 + more)
                else:
                    fresh = metrics[i] + more.to(x)
                    x.mul_(metrics[i] / fresh)
                    metrics[i] = fresh
            elif stage.kind == "clip":
                x.clamp_(stage.low, stage.high)
            else:
                stage.penalty.operate_(x, taus[i].to(x), None if metrics is None else metrics[i], cuts[i].grouping)


def _shrink(
    number: int,
    which: Sequence[int],
    cuts: Sequence[Cut],
    work: Sequence[Tensor],
    taus: Sequence[Tensor],
    metrics: Sequence[Tensor] | None,
) -> None:
    """One stage of thresholds; groups across processes take one all-reduce (in a metric some) for each set."""
    prox = "hard" if cuts[0].stages[number].kind == "hard" else "soft"
    together: dict[tuple[Any, ...], list[tuple[Tensor, Tensor, Tensor | None, GroupLayout, Tensor, int]]] = {}
    for i in which:
        stage, x = cuts[i].stages[number], work[i]
        by = "element" if stage.kind == "weights" else stage.by
        layout, in_place = cuts[i].layout(x, by)
        dense = x if in_place else x.clone(memory_format=torch.contiguous_format)
        metric = None if metrics is None else metrics[i] if in_place else metrics[i].contiguous()
        tau = taus[i] * stage.strength
        processes, size = cuts[i].across(by)
        if processes:
            together.setdefault(processes, []).append((x, dense, metric, layout, tau.to(x), size))
        elif metric is not None:
            x.copy_(metric_point(dense, metric, layout, tau.to(x), prox))
        elif x.is_cpu and tau.is_cpu:
            ops.prox_([dense], [layout], [float(tau)], prox=prox)
            if not in_place:
                x.copy_(dense)
        else:
            x.copy_(proximal_point(dense, layout, tau.to(x), prox))
    for processes, rows in together.items():
        xs, dense_ones, own_metrics, layouts, thresholds, sizes = zip(*rows, strict=True)
        across = Parts(sizes, processes)
        if metrics is None:
            found = proximal_parts(dense_ones, layouts, thresholds, prox, across)
        else:
            found = metric_parts(dense_ones, own_metrics, layouts, thresholds, prox, across)
        for x, new in zip(xs, found, strict=True):
            x.copy_(new)
