"""One consumer of the units at hand: its folded weights, its streamed moments, its refit and the way back into it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_accel.calibration.columns import (
    column_chunks,
    column_count,
    is_convolution,
    unit_columns,
    weight_matrix,
    weight_of,
)
from sparse_accel.calibration.data import all_reduce_
from sparse_accel.calibration.moments import Gram
from sparse_accel.calibration.powers import power_of, times_power
from sparse_accel.channels.widths import Consumer
from sparse_accel.prune.select.gram import Refit
from sparse_accel.prune.select.ispasp import batchnorm_affine
from sparse_accel.prune.structured.sites import Seen, Site
from sparse_accel.removal.configs import owner_of


@dataclass(frozen=True)
class Settings:
    """How every width is treated: the arguments of :class:`~sparse_accel.prune.structured.pruner.ISpaSP`."""

    method: str
    refit: str | None
    iterations: int
    relu_iterations: int
    ridge: float
    new_bias: bool | None
    fresh_batches: bool
    cache_bytes: int
    seed: int

    @property
    def measures(self) -> bool:
        """Whether units are chosen, or their readers refit, by statistics of the data."""
        return self.refit is not None or self.method not in ("magnitude", "random")

    def may_create_bias(self, model: nn.Module, module: str) -> bool:
        """Whether a layer without a bias may get one: by default not where a configuration rebuilds the model."""
        return owner_of(model, module) is None if self.new_bias is None else self.new_bias

    def target(self, site: Site, module: nn.Module) -> str:
        """The refit target of a consumer."""
        if site.routed:  # the dense model's results are those of other samples
            return "local"
        if self.refit != "auto":
            known = {"skip": "skip" if site.residual else "dense", "dense": "dense"}
            return known.get(self.refit or "", "local")
        if site.residual:
            return "skip" if is_convolution(module) else "local"
        return "dense" if is_convolution(module) or site.relu or site.output else "local"


Piece = tuple[Tensor, "Tensor | None", "Tensor | None"]


class Layer:
    """A consumer in the model that is being pruned.

    Weights are *folded*: they map the consumer's input to the result after its norm, whose scale is multiplied in and
    never divided by.

    Args:
        model: with the consumer.
        consumer: what reads the units.
        site: where its result goes.
        target: ``"local"``, ``"dense"`` or ``"skip"``, see :class:`~sparse_accel.prune.structured.pruner.ISpaSP`.
        new_bias: whether a missing bias may be created.
        gone: columns whose units have been removed, int64; their weights are zero and stay so.

    Attributes:
        weight: folded, float64 ``[groups, out / groups, D]``.
        shift: folded bias, float64 ``[out]``.
        columns: columns of each unit in ``groups * D``, int64 ``[units, block]``.
        fixed: columns of no unit at hand that are still there, int64.
        gram: moments, after :meth:`start`.
    """

    gram: Gram

    def __init__(
        self,
        model: nn.Module,
        consumer: Consumer,
        site: Site,
        target: str,
        *,
        new_bias: bool,
        gone: Tensor | None = None,
    ) -> None:
        self.name = consumer.module
        self.module = model.get_submodule(consumer.module)
        self.norm = None if consumer.norm is None else model.get_submodule(consumer.norm)
        self.site = site
        self.target = target
        self.groups, self.features = column_count(self.module)
        raw = self._raw_weight()
        bias = getattr(self.module, "bias", None)
        self.has_bias = bias is not None or self.norm is not None or new_bias
        self.outputs = raw.shape[0] * raw.shape[1]
        if self.norm is not None:
            scale, self.shift = batchnorm_affine(self.norm, bias)
            self.weight = raw * scale.reshape(self.groups, -1, 1)
        else:
            self.shift = raw.new_zeros(self.outputs) if bias is None else bias.detach().double()
            self.weight = raw
        self.columns = unit_columns(self.module, consumer.channels.to(raw.device))
        free = torch.ones(self.groups * self.features, dtype=torch.bool, device=raw.device)
        free[self.columns.flatten()] = False
        if gone is not None:
            free[gone] = False
        self.fixed = free.nonzero().flatten()

    def _raw_weight(self) -> Tensor:
        return weight_matrix(self.module, self.module.get_parameter("weight").detach().double())

    @property
    def nbytes(self) -> int:
        """Bytes that the moments take."""
        return Gram.bytes_needed(self.groups, self.features, 0 if self.target == "local" else self._rows)

    @property
    def _rows(self) -> int:
        return self.outputs // self.groups

    def start(self) -> None:
        """Empty moments."""
        device, rows = self.weight.device, 0 if self.target == "local" else self._rows
        self.gram = Gram(self.groups, self.features, rows, centred=self.has_bias, device=device)
        self._square = torch.zeros(self.groups, self._rows, dtype=torch.float64, device=device)

    def pieces(self, seen: Seen, dense: Seen | None, positions: Sequence[Tensor | None]) -> Iterator[Piece]:
        """What a batch shows, as columns with their targets and shortcuts.

        Args:
            seen: of the pruned model.
            dense: of the dense model; None for the local target.
            positions: of a linear consumer to use, bool ``[positions]`` for each call; None for all.

        Yields:
            Columns ``[groups, D, n]``; the wanted result, with its shortcut, ``[groups, out / groups, n]``, or None;
            the pruned model's shortcut of that shape, or None.
        """
        convolution = is_convolution(self.module)
        batched = len(getattr(self.module, "kernel_size", ())) + 2
        for call, (x, chosen) in enumerate(zip(seen.inputs, positions, strict=True)):
            wanted = None if dense is None else dense.results[call]
            short = seen.shortcuts[call] if self.target == "skip" and seen.shortcuts else None
            if not convolution:
                x = x.reshape(-1, self.features)
                wanted, short = (None if t is None else t.reshape(-1, self.outputs) for t in (wanted, short))
                if chosen is not None:
                    x = x[chosen]
                    wanted, short = (None if t is None else t[chosen] for t in (wanted, short))
            elif x.dim() < batched:
                x = x[None]
                wanted, short = (None if t is None else t[None] for t in (wanted, short))
            for columns, part in column_chunks(self.module, x, size=seen.sizes[call][-max(1, batched - 2) :]):
                columns = columns if columns.dtype == torch.float64 else columns.float()
                yield columns, self._as_rows(wanted, part, columns), self._as_rows(short, part, columns)

    def _as_rows(self, tensor: Tensor | None, part: slice, like: Tensor) -> Tensor | None:
        return None if tensor is None else tensor[part].to(like).transpose(0, 1).reshape(self.groups, self._rows, -1)

    def add(self, columns: Tensor, wanted: Tensor | None, short: Tensor | None) -> None:
        """Add a piece to the moments."""
        if wanted is None:
            self.gram.update(columns)
            return
        target = wanted if short is None else wanted - short
        self.gram.update(columns, target)
        power = power_of(target)
        square = times_power(target, -power).square().sum(2, dtype=torch.float64)
        self._square += times_power(square, 2 * power)

    def finish(self) -> None:
        """Join the moments of all ranks, and take what selection and refit need from them."""
        self.gram.all_reduce_()
        all_reduce_([self._square])
        means = self.gram.mean, self.gram.target_mean
        self.moments, cross = self.gram.take()
        self._refit: tuple[Tensor, Refit] | None = None
        self.mean = means[0] if self.has_bias else torch.zeros_like(means[0])
        shift = self.shift.reshape(self.groups, -1)
        if self.target == "local":
            self.cross = self.weight @ self.moments
            self.target_mean = (self.weight @ self.mean[..., None])[..., 0] + shift
            self.energy = float((self.cross * self.weight).sum())
            if not self.has_bias:
                self.target_mean = torch.zeros_like(shift)
        elif self.has_bias:
            self.cross, self.target_mean = cross, means[1]
            self.energy = float((self._square - self.gram.count * self.target_mean.square()).sum())
        else:
            self.cross, self.target_mean = cross, torch.zeros_like(shift)
            self.energy = float(self._square.sum())
        self.energy = max(self.energy, 0.0)

    # solutions: a full weight [groups, out / groups, D], zero where units are removed, and the result's bias [out]

    def kept_columns(self, kept: Tensor) -> Tensor:
        """Columns of the units kept and of no unit, ascending."""
        return torch.cat([self.fixed, self.columns[kept].flatten()]).sort().values

    def removed_columns(self, kept: Tensor) -> Tensor:
        """Columns of the units that are not kept."""
        rest = torch.ones(len(self.columns), dtype=torch.bool, device=self.columns.device)
        rest[kept] = False
        return self.columns[rest].flatten()

    def masked(self, kept: Tensor) -> Tensor:
        """The weights, zero where units are removed."""
        return self.weight * self._mask(kept)

    def _mask(self, kept: Tensor) -> Tensor:
        mask = torch.zeros(self.groups * self.features, dtype=torch.float64, device=self.weight.device)
        mask[self.kept_columns(kept)] = 1
        return mask.reshape(self.groups, 1, self.features)

    def fit(self, kept: Tensor, ridge: float, cross: Tensor | None = None) -> Tensor:
        """The least-squares weights on the units kept; the same units again cost no other factorization."""
        at = self.kept_columns(kept)
        if self._refit is None or not torch.equal(self._refit[0], at):
            self._refit = at, Refit(self.moments, self.cross, self.weight, at, ridge=ridge, semidefinite=True)
        few = self._refit[1](self.cross if cross is None else cross)
        out = torch.zeros_like(self.weight)
        for group, rows in enumerate(out):
            own = at[(at >= group * self.features) & (at < (group + 1) * self.features)] - group * self.features
            rows[:, own] = few[group]
        return out

    def intercept(self, weight: Tensor, target_mean: Tensor | None = None) -> Tensor:
        """The bias ``[out]`` that makes the mean of the result that of the target."""
        if not self.has_bias:
            return self.shift
        mean = self.target_mean if target_mean is None else target_mean
        return (mean - (weight @ self.mean[..., None])[..., 0]).flatten()

    def error(self, weight: Tensor, shift: Tensor) -> float:
        """Relative squared error of a solution: of the target's variation."""
        few, own, cross = self._used(weight)
        square = self.energy + float((few * (few @ own - 2 * cross)).sum())
        if self.has_bias:
            square += self.gram.count * float((self.intercept(weight) - shift).square().sum())
        return max(square, 0.0) / self.energy if self.energy > 0 else 0.0

    def _used(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A solution and both moments, without columns that are gone."""
        at = slice(None) if self.groups > 1 else weight[0].any(0).nonzero().flatten()
        return weight[:, :, at], self.moments[:, at][:, :, at], self.cross[:, :, at]

    def cut(self, kept: Tensor, shift: Tensor | None = None) -> None:
        """Zero the weights of the units removed, without another change.

        Args:
            kept: units.
            shift: the folded bias to have, ``[out]``; None keeps it.

        Raises:
            ValueError: there is no bias to hold the shift.
        """
        with torch.no_grad():
            if shift is not None:
                self._shift_by(shift - self.shift)
            self._store(self._raw_weight() * self._mask(kept))

    def _shift_by(self, change: Tensor) -> None:
        bias = getattr(self.module if self.norm is None else self.norm, "bias", None)
        if bias is not None:
            bias.add_(change.to(bias))
        elif self.norm is None:
            self._create_bias(change)
        else:  # a norm without scale and shift
            mean, scale = self.norm.get_buffer("running_mean"), batchnorm_affine(self.norm)[0]
            mean.sub_((change / scale).to(mean))

    def write(self, weight: Tensor, shift: Tensor) -> None:
        """Put a solution into the consumer and its norm.

        The norm gets the statistics of the new result and the scale ``sqrt(var + eps)``, so that it only shifts:
        nothing is divided by the old norm's scale.

        Args:
            weight: folded, ``[groups, out / groups, D]``.
            shift: folded, ``[out]``.
        """
        bias = getattr(self.module, "bias", None)
        with torch.no_grad():
            if self.norm is None:
                self._store(weight)
                if bias is not None:
                    bias.copy_(shift)
                elif self.has_bias and bool(shift.any()):
                    self._create_bias(shift)
                return
            eps = float(self.norm.eps)  # type: ignore[arg-type]
            running_mean, running_var = self.norm.get_buffer("running_mean"), self.norm.get_buffer("running_var")
            if getattr(self.norm, "weight", None) is None:  # no scale of its own: the variance stays, the weights scale
                scale = (running_var.double() + eps).sqrt()
                running_mean.copy_(-shift * scale)
                weight = weight * scale.reshape(self.groups, -1, 1)
            else:
                mean = (weight @ self.mean[..., None])[..., 0].flatten()
                few, own, _ = self._used(weight)
                variance = ((few @ own) * few).sum(2).flatten().clamp(min=0) / max(1, self.gram.count)
                running_mean.copy_(mean)
                running_var.copy_(variance)
                self.norm.get_parameter("weight").copy_((variance + eps).sqrt())
                self.norm.get_parameter("bias").copy_(shift + mean)
            self._store(weight)
            if bias is not None:
                bias.zero_()

    def _store(self, weight: Tensor) -> None:
        self.module.get_parameter("weight").copy_(weight_of(self.module, weight))
        torch.clear_autocast_cache()  # it would go on with the old weights in half precision

    def _create_bias(self, shift: Tensor) -> None:
        like = self.module.get_parameter("weight")
        self.module.register_parameter("bias", nn.Parameter(shift.to(like), requires_grad=like.requires_grad))
