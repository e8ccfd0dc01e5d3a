"""i-SpaSP: which hidden units to keep, by sparse signal recovery on sums of activations.

Source: Wolfe and Kyrillidis, "i-SpaSP: Structured Neural Pruning via Sparse Signal Recovery", L4DC 2022 (arXiv
2112.04905). With H ``[C, N]`` the hidden activations, W the linear consumer and ``U = W H``, the paper repeats

    ``y = (W^T V_r) 1``;  Omega = the 2 s largest of y;  S = the s largest of ``h = H 1`` among ``Omega + S``;
    ``V_r = U - W_S H_S``

over all data. As the consumer is linear, ``y = W^T W (h - P_S h)``: the sums h are all that is needed, taken in one
pass. For a convolution they are the spatial maps of sums, because padding tells borders apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.calibration.moments import columns
from sparse_accel.groups import GroupLayout
from sparse_accel.ops import group_score, group_topk
from sparse_accel.prune.select.gram_problem import kept_units, unit_sets

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class ISpaSPSelection:
    """Units kept, and how they were found.

    Attributes:
        kept: their numbers, ascending, int64 ``[keep]``.
        history: the set after each iteration; where the loop ended before its time, the last is equal to that before
            it, and all later ones would be.
        importance: y of each iteration, float64 ``[C]`` each.
        residuals: ``|V_r 1|^2``, the squared norm of the residual summed over the samples, before the first iteration
            and after each, float64 ``[len(history) + 1]``.
    """

    kept: Tensor
    history: tuple[Tensor, ...]
    importance: tuple[Tensor, ...]
    residuals: Tensor


def ispasp_select(
    hidden_sum: Tensor,
    weight: Tensor,
    keep: int | float,
    iterations: int = 20,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    count: int = 1,
    balance: int | Tensor | None = None,
    start: Tensor | None = None,
) -> ISpaSPSelection:
    """i-SpaSP on the sums of hidden activations, in float64; exactly the paper's sets.

    Scores are signed, ties go to the lowest index, and the loop ends when S repeats, which is exact.

    Args:
        hidden_sum: the consumer's input summed over the samples: ``[C]`` for a dense consumer; ``[C, length]``,
            ``[C, height, width]`` or ``[C, depth, height, width]`` for a convolution. A dense consumer whose units
            own several columns each (heads, channels before a flatten) takes ``[C, ...]``, the columns of unit i
            side by side.
        weight: the consumer's: ``[d, C]``, or a convolution's ``[d, C / groups, *kernel_size]``, or ``[d, n]`` with
            n the elements of ``hidden_sum``.
        keep: number of units to keep, or a share in (0, 1) of them, rounded down.
        iterations: T.
        stride, padding, dilation, groups, padding_mode: of the convolution, as in ``nn.Conv2d``.
        scale: ``[d]``, what the outputs are multiplied with, such as a BatchNorm's folded scale.
        shift: ``[d]``, what is added after that. It counts only while S is empty: later it cancels.
        count: number of samples in the sums; of use with ``shift`` only.
        balance: keep equally many of every set: the number of sets of neighbouring units, or the set of each unit,
            int64 ``[C]``.
        start: the units that S holds before the first iteration, none by default: with it, iterations may go on with
            the sums of fresh data.

    Raises:
        ValueError: shapes or numbers that do not fit.

    Example:
        >>> weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
        >>> chosen = ispasp_select(torch.tensor([1.0, 3.0, 4.0]), weight, keep=1)
        >>> chosen.kept, chosen.residuals
        (tensor([2]), tensor([90., 10., 10.], dtype=torch.float64))
    """
    units = hidden_sum.shape[0] if hidden_sum.dim() else 0
    if iterations < 1:
        raise ValueError(f"iterations: expected at least 1, got {iterations}")
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    for name, tensor in (("hidden_sum", hidden_sum), ("weight", weight), ("scale", scale), ("shift", shift)):
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name}: expected finite numbers, got NaN or inf")
    conv = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": padding_mode}
    consumer = _Consumer(hidden_sum, weight, conv, scale, shift, count)
    sets = unit_sets(balance, units, hidden_sum.device)
    number = kept_units("keep", keep, units, 1 if sets is None else int(sets.max()) + 1)
    sums = hidden_sum.detach().double().contiguous()
    (h,) = group_score([sums], [GroupLayout(1, units, sums.numel() // units)], "sum")
    kept = torch.zeros(units, dtype=torch.bool, device=h.device)
    if start is not None:
        kept[_checked("start", start, units).to(kept.device)] = True
    history: list[Tensor] = []
    importance: list[Tensor] = []
    residuals: list[Tensor] = []
    repeated = False
    while len(history) < iterations and not repeated:
        y, residual = consumer.score(kept)
        candidates = kept | _largest(y, 2 * number, sets)
        chosen = _largest(h.masked_fill(~candidates, -torch.inf), number, sets)
        repeated = bool(kept.any()) and torch.equal(chosen, kept)
        kept = chosen
        importance.append(y)
        residuals.append(residual)
        history.append(kept.nonzero().flatten())
    residuals.append(residual if repeated else consumer.score(kept)[1])
    return ISpaSPSelection(history[-1], tuple(history), tuple(importance), torch.stack(residuals))


def batchnorm_affine(norm: nn.Module, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scale and shift ``[d]`` of an eval-mode BatchNorm after a layer with this bias, for :func:`ispasp_select`.

    Raises:
        ValueError: the norm is in train mode or has no running statistics: it is then no affine map.

    Example:
        >>> scale, shift = batchnorm_affine(nn.BatchNorm2d(2, eps=0.0).eval(), torch.ones(2))
        >>> scale.tolist(), shift.tolist()
        ([1.0, 1.0], [1.0, 1.0])
    """
    mean, variance = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if norm.training or mean is None or variance is None:
        why = "train mode" if norm.training else "no running statistics"
        raise ValueError(f"norm: expected a BatchNorm in eval mode with running statistics, got {why}")
    scale = (variance.double() + float(getattr(norm, "eps", 0.0))).rsqrt()
    gamma, beta = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if gamma is not None:
        scale = scale * gamma.detach().double()
    shift = -mean.double() * scale
    if beta is not None:
        shift = shift + beta.detach().double()
    if bias is not None:
        shift = shift + bias.detach().double() * scale
    return scale, shift


def _checked(name: str, numbers: Tensor, units: int) -> Tensor:
    whole = numbers.dtype == torch.int64 and numbers.dim() == 1
    if not whole or (numbers.numel() and not (int(numbers.min()) >= 0 and int(numbers.max()) < units)):
        raise ValueError(
            f"{name}: expected int64 unit numbers in [0, {units}), got {numbers.dtype}, {numbers.tolist()}"
        )
    return numbers


def _largest(score: Tensor, count: int, sets: Tensor | None) -> Tensor:
    """Mask of the ``count`` largest, as many in each set; all where there are no more."""
    if sets is None:
        return group_topk(score, min(count, score.numel()))
    mask = torch.zeros(score.shape, dtype=torch.bool, device=score.device)
    number = int(sets.max()) + 1
    for one in range(number):
        members = (sets == one).nonzero().flatten()
        mask[members] = group_topk(score[members], min(count // number, members.numel()))
    return mask


class _Consumer:
    """The linear consumer on the map of sums: its outputs from some of the units, and what they weigh for each."""

    def __init__(
        self,
        hidden_sum: Tensor,
        weight: Tensor,
        conv: dict[str, Any],
        scale: Tensor | None,
        shift: Tensor | None,
        count: int,
    ) -> None:
        wide, matrix = hidden_sum.detach().double(), weight.detach().double()
        if hidden_sum.dim() < 1 or not hidden_sum.numel():
            raise ValueError(f"hidden_sum: expected [C, ...], not empty, got {tuple(hidden_sum.shape)}")
        self.units = hidden_sum.shape[0]
        if weight.dim() == 2:
            if weight.shape[1] != hidden_sum.numel():
                raise ValueError(
                    f"weight: expected [d, {hidden_sum.numel()}], one column for each element of hidden_sum, got "
                    f"{tuple(weight.shape)}"
                )
            self.matrix, taps = matrix[None], hidden_sum.numel() // self.units  # [groups, d, columns]
            self.columns = wide.reshape(1, -1, 1)  # [groups, columns, positions]
            self.ones = torch.ones(taps, 1, dtype=torch.float64, device=wide.device)  # [taps, positions]
        else:
            module = _convolution(hidden_sum, weight, conv)
            self.columns = columns(module, wide[None])
            own = self.units // module.groups
            # What a unit's taps see of a map of ones; all units alike.
            self.ones = columns(module, torch.ones_like(wide)[None])[0].unflatten(0, (own, -1))[0]
            self.matrix = matrix.reshape(module.groups, weight.shape[0] // module.groups, -1)
        outputs = (self.matrix.shape[0], self.matrix.shape[1], 1)
        self.scale = _per_output("scale", scale, outputs, wide, 1.0)
        self.shift = count * _per_output("shift", shift, outputs, wide, 0.0)

    def score(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """y ``[C]`` and ``|V_r 1|^2`` with the units of a mask taken out of the residual."""
        taps = self.columns.numel() // self.columns.shape[2] // self.units
        left = (~kept).view(self.columns.shape[0], -1).repeat_interleave(taps, 1)  # [groups, columns]
        residual = self.scale * ((self.matrix * left[:, None]) @ self.columns)  # [groups, d, positions]
        if not bool(kept.any()):
            residual = residual + self.shift
        seen = (self.scale * residual) @ self.ones.T  # [groups, d, taps]
        each = self.matrix.unflatten(2, (-1, taps))  # [groups, d, units, taps]
        by_tap = (each * seen[:, :, None]).sum(1).contiguous()
        (y,) = group_score([by_tap], [GroupLayout(1, self.units, taps)], "sum")
        return y, residual.square().sum()


def _per_output(name: str, values: Tensor | None, shape: tuple[int, int, int], like: Tensor, default: float) -> Tensor:
    if values is None:
        return like.new_full(shape, default)
    if values.numel() != math.prod(shape) or values.dim() != 1:
        raise ValueError(f"{name}: expected [{math.prod(shape)}], one number per output, got {tuple(values.shape)}")
    return values.detach().to(like).view(shape)


def _convolution(hidden_sum: Tensor, weight: Tensor, conv: dict[str, Any]) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """The consumer as a module without memory; refuses what does not fit."""
    ndim, units, groups = weight.dim() - 2, hidden_sum.shape[0], conv["groups"]
    if ndim not in (1, 2, 3) or hidden_sum.dim() != ndim + 1:
        raise ValueError(
            f"weight: expected [d, C] with hidden_sum [C], or a convolution's [d, C / groups, *kernel_size] with "
            f"hidden_sum [C, *size], got {tuple(weight.shape)} with {tuple(hidden_sum.shape)}"
        )
    if groups < 1 or units % groups or weight.shape[0] % groups or weight.shape[1] * groups != units:
        raise ValueError(
            f"weight: expected [d, {units} / groups, ...] with d and {units} divisible by groups = {groups}, got "
            f"{tuple(weight.shape)}"
        )
    kernel: Any = tuple(weight.shape[2:])
    return _CONVS[ndim - 1](units, weight.shape[0], kernel, **conv, bias=False, device="meta")
