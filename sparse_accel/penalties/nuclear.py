"""The nuclear norm: weights of low rank."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sparse_accel.groups import Grouping
from sparse_accel.sharding import local_part, shard_groups

from .base import Groupings, Penalty, Stage
from .plain import register

__all__ = ["NuclearNorm"]


@dataclasses.dataclass(frozen=True)
class NuclearNorm(Penalty):
    """Sum of singular values, ``strength * sum_i sigma_i(W)``: drives weights to low rank.

    A weight is the matrix of its layer, ``[out, in * kernel]`` (also of a transposed convolution); of a grouped
    convolution and of stacked matrices each block is a matrix of its own. Tensors of fewer than two dimensions are left
    alone. Its operator shrinks the singular values, by a decomposition in float64 (float32 on MPS), one per weight and
    step: for a few layers, not for all of a network. Source: Cai, Candes & Shen, "A singular value thresholding
    algorithm for matrix completion", SIAM J. Optim. 2010.

    ``RMDA`` and ``ProxSGD`` take it. ``RAMDA`` and ``ProxAdamW`` refuse it: in a diagonal metric the minimum is in no
    closed form, and shrinking the singular values is not it. Sharded weights (DTensor) are refused, too: their singular
    values are those of all parts together.

    Args:
        strength: weight of the penalty, finite, >= 0.

    Example:
        >>> x = torch.diag(torch.tensor([3.0, 0.5]))
        >>> NuclearNorm(1.0).prox_(x)
        >>> x, torch.linalg.matrix_rank(x)
        (tensor([[2., 0.],
                [0., 0.]]), tensor(1))
    """

    name: ClassVar[str] = "nuclear_norm"
    prox_name: ClassVar[str] = "stages"
    whole: ClassVar[bool] = True
    size_power: ClassVar[float] = 0.0

    @property
    def by(self) -> str:
        """``"output"``: tensors of two or more dimensions."""
        return "output"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Its own operator."""
        return (Stage("call", self.by, penalty=self),)

    @property
    def not_in_metric(self) -> str:
        """See :class:`Penalty`."""
        return "its minimum in a diagonal metric has no closed form"

    def scaled(self, factor: float) -> Penalty:
        """The same: sizes do not enter."""
        return self

    def value(self, tensors: Tensor | Sequence[Tensor], groupings: Groupings = None) -> Tensor:
        """As :meth:`Penalty.value`.

        Raises:
            ValueError: a tensor is sharded, besides what :meth:`Penalty.value` says.
        """
        tensors, pairs = self._pairs(tensors, groupings)
        total = torch.zeros((), dtype=torch.float64, device=tensors[0].device if tensors else None)
        for tensor, grouping in pairs:
            if tensor.numel():
                values = torch.linalg.svdvals(_matrices(_all_of(tensor).double(), grouping))
                total += self.strength * values.sum().to(total.device)
        return total

    @torch.no_grad()
    def prox_(self, tensors: Tensor | Sequence[Tensor], step: float = 1.0, groupings: Groupings = None) -> None:
        """As :meth:`Penalty.prox_`.

        Raises:
            ValueError: a tensor is sharded, besides what :meth:`Penalty.prox_` says.
        """
        if not math.isfinite(step) or step < 0:
            raise ValueError(f"step: expected a finite number >= 0, got {step!r}")
        pairs = self._pairs(tensors, groupings)[1]
        for tensor, grouping, here in [(tensor, grouping, _all_of(tensor)) for tensor, grouping in pairs]:
            self.operate_(here, torch.tensor(step, dtype=torch.float64, device=tensor.device), None, grouping)

    def operate_(self, weight: Tensor, tau: Tensor, metric: Tensor | None, grouping: Grouping) -> None:
        """Shrink the singular values; where a weight is not finite, all become NaN, so that it shows."""
        if metric is not None:
            raise ValueError(f"NuclearNorm: {self.not_in_metric}")
        if weight.numel() == 0:
            return
        matrices = _matrices(weight.to(torch.float32 if weight.device.type == "mps" else torch.float64), grouping)
        finite = matrices.isfinite().all()
        left, values, right = torch.linalg.svd(torch.where(finite, matrices, 0.0), full_matrices=False)
        bound = tau.to(values) * self.strength
        shrunk = (left * (values - bound).clamp(min=0).unsqueeze(-2)) @ right
        shrunk = torch.where(bound == 0, matrices, torch.where(finite, shrunk, math.nan))
        _matrices(weight, grouping, shrunk)


def _all_of(tensor: Tensor) -> Tensor:
    if shard_groups(tensor):
        raise ValueError(
            f"tensors: NuclearNorm needs all of a weight, and the DTensor of shape {tuple(tensor.shape)} is sharded: "
            "replicate it, or take a penalty of its groups"
        )
    return local_part(tensor.detach())


def _matrices(weight: Tensor, grouping: Grouping, new: Tensor | None = None) -> Tensor:
    """The matrices ``[blocks, out, in * kernel]`` of a weight; with ``new``, these are written into it."""
    if grouping.stacked:
        view = weight.transpose(-1, -2) if grouping.transposed else weight
    else:
        view = weight.unflatten(0, (grouping.conv_groups, -1))
        view = view.transpose(1, 2) if grouping.transposed else view
    if new is None:
        return view if grouping.stacked else view.flatten(2)
    view.copy_(new.reshape(view.shape))
    return weight


register(NuclearNorm)
