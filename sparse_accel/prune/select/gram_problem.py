"""The arguments of :mod:`sparse_accel.prune.select.gram`, checked, and what its methods share."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from sparse_accel.ops.group_topk import group_topk


def unit_sets(balance: int | Tensor | None, units: int, device: torch.device) -> Tensor | None:
    """The set of each unit, int64 ``[units]``, from a number of sets of neighbours or as given."""
    if balance is None:
        return None
    if not isinstance(balance, Tensor):
        if balance < 1 or units % balance:
            raise ValueError(f"balance: expected a divisor of {units}, the number of units, got {balance}")
        return torch.arange(units, device=device) // (units // balance)
    if balance.dtype != torch.int64 or balance.shape != (units,):
        raise ValueError(
            f"balance: expected int64 [{units}], the set of each unit, got {tuple(balance.shape)}, {balance.dtype}"
        )
    sets = balance.to(device)
    if units:
        sizes = torch.bincount(sets.clamp(min=0))
        if int(sets.min()) < 0 or bool((sizes != sizes[0]).any()):
            raise ValueError(f"balance: expected sets of equal size, numbered from 0, got sizes {sizes.tolist()}")
    return sets


def kept_units(name: str, keep: int | float, units: int, sets: int = 1, least: int = 1) -> int:
    """The number of units that ``keep`` asks for: itself, or a share rounded down, of each set; at least one."""
    if isinstance(keep, float):
        if not 0 < keep < 1:
            raise ValueError(f"{name}: expected an integer, or a share in (0, 1), got {keep}")
        keep = sets * max(1, math.floor(keep * (units // sets) + 1e-9))
    if not least <= keep <= units:
        raise ValueError(f"{name}: expected {least} to {units}, the number of units, got {keep}")
    if keep % sets:
        raise ValueError(f"{name}: expected a multiple of {sets}, the number of sets kept alike, got {keep}")
    return keep


SAFE_RIDGE = 1e-7  # beside the rounding of G: a positive semidefinite one is definite with it
LARGE = 1024  # columns from which a matrix is inverted by halves
PANEL = 512  # rows of a symmetric product at a time
SAFE = 200  # numbers in [2^-200, 2^200] may be inverted and squared


def _times_power(tensor: Tensor, power: int) -> Tensor:
    """``tensor * 2^power``, in two steps: 2^power alone may be out of range."""
    half = power // 2
    return tensor * 2.0**half * 2.0 ** (power - half)


def all_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN or inf.

    Example:
        >>> all_finite(torch.tensor([1e308, 1e308], dtype=torch.float64)), all_finite(torch.tensor([1.0, math.inf]))
        (True, False)
    """
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())  # a sum may overflow


def invert_(factor: Tensor) -> Tensor:
    """``(L L^T)^-1`` in the place of lower triangular L ``[..., n, n]``; of a large one by products of its halves, as
    LAPACK takes it column by column.

    With ``L = [[A, 0], [B, C]]``, ``M = B A^-1`` and ``Q = (C C^T)^-1`` that is
    ``[[(A A^T)^-1 + M^T Q M, -M^T Q], [-Q M, Q]]``.

    Example:
        >>> invert_(torch.tensor([[2.0, 0.0], [2.0, 1.0]])).tolist()
        [[1.25, -1.0], [-1.0, 1.0]]
    """
    n = factor.shape[-1]
    if n < LARGE:
        return factor.copy_(torch.cholesky_inverse(factor))
    half = n // 2
    first, below = factor[..., :half, :half], factor[..., half:, :half]
    m = torch.linalg.solve_triangular(first, below, upper=False, left=False)
    torch.matmul(invert_(factor[..., half:, half:]), m, out=below)
    below.neg_()
    factor[..., :half, half:] = below.mT
    invert_(first)
    for start in range(0, half, PANEL):  # what is added is symmetric: half of it is enough
        own, before = slice(start, min(start + PANEL, half)), slice(0, start)
        part = m[..., own].mT @ below[..., : own.stop]
        first[..., own, before] -= part[..., before]
        first[..., before, own] -= part[..., before].mT
        first[..., own, own] -= (part[..., own] + part[..., own].mT) / 2
    return factor


def solved(factor: Tensor, right: Tensor) -> Tensor:
    """``(L L^T)^-1 B`` of lower triangular L: ``torch.cholesky_solve`` without its copy of L.

    Example:
        >>> solved(torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[4.0], [4.0]])).tolist()
        [[0.0], [2.0]]
    """
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


class GramProblem:
    """Checked arguments in float64 with a leading dimension of groups, and what the methods share.

    With ``semidefinite`` the caller knows that G is, beside rounding: the whole of it is factored on request only.
    """

    def __init__(
        self,
        gram: Tensor,
        cross: Tensor,
        weight: Tensor,
        block: int,
        keep: int | float | None,
        ridge: float,
        balance: int | Tensor | None,
        *,
        semidefinite: bool = False,
    ) -> None:
        if gram.dim() not in (2, 3) or gram.shape[-1] != gram.shape[-2]:
            raise ValueError(f"gram: expected [n, n] or [groups, n, n], got {tuple(gram.shape)}")
        columns, batch = gram.shape[-1], tuple(gram.shape[:-2])
        for name, tensor in (("cross", cross), ("weight", weight)):
            if tensor.dim() != gram.dim() or tensor.shape[-1] != columns or tuple(tensor.shape[:-2]) != batch:
                wanted = "[d, n]" if not batch else "[groups, d, n]"
                raise ValueError(f"{name}: expected {wanted} with n = {columns}, got {tuple(tensor.shape)}")
        if cross.shape != weight.shape:
            raise ValueError(f"weight: expected the shape of cross, {tuple(cross.shape)}, got {tuple(weight.shape)}")
        if block < 1 or columns % block:
            raise ValueError(f"block: expected a divisor of {columns}, the number of columns, got {block}")
        if not (ridge >= 0 and math.isfinite(ridge)):
            raise ValueError(f"ridge: expected a finite number >= 0, got {ridge}")
        self.batched = bool(batch)
        self.block = block
        tensors = []
        for name, tensor in (("gram", gram), ("cross", cross), ("weight", weight)):
            wide = tensor.detach().to(torch.float64)
            if not all_finite(wide):
                raise ValueError(f"{name}: expected finite numbers, got NaN or inf")
            tensors.append(wide if batch else wide[None])
        self.gram, self.cross, self.weight = tensors
        self.power = 0  # G and M are taken over 2^power, where inverses of G would leave the range of float64
        largest = float(self.gram.diagonal(dim1=1, dim2=2).abs().max()) if columns else 0.0
        if largest > 0 and abs(exponent := math.frexp(largest)[1]) > SAFE:
            self.power = exponent
            self.gram, self.cross = (_times_power(tensor, -exponent) for tensor in (self.gram, self.cross))
        self.groups = self.gram.shape[0]
        self.own_units = columns // block
        self.units = self.groups * self.own_units
        self.sets = unit_sets(balance, self.own_units, self.gram.device)
        self.num_sets = self.groups if self.sets is None else self.groups * (int(self.sets.max()) + 1)
        self.keep = self.units if keep is None else self.count("keep", keep, 1)
        mean = self.gram.diagonal(dim1=1, dim2=2).mean(1) if columns else self.gram.new_ones(self.groups)
        self.delta = torch.where(mean > 0, ridge * mean, 1.0)
        self._known: Tensor | None = None
        self._roots: list[tuple[Tensor, Tensor]] | None = None
        if not (semidefinite and ridge > SAFE_RIDGE):
            self._known = self._factor()

    def count(self, name: str, keep: int | float, least: int) -> int:
        """The number of units that ``keep`` asks for."""
        return kept_units(name, keep, self.units, self.num_sets, least)

    def eye(self, size: int) -> Tensor:
        return torch.eye(size, dtype=torch.float64, device=self.gram.device)

    @property
    def factor(self) -> Tensor:
        """Cholesky factor of ``G + delta I``, ``[groups, n, n]``, made at the first request."""
        if self._known is None:
            self._known = self._factor()
        return self._known

    def inverse(self) -> Tensor:
        """``(G + delta I)^-1``, in the place of the factor, which is gone then."""
        factor, self._known = self.factor, None
        return invert_(factor)

    def _factor(self) -> Tensor:
        """Cholesky factor of ``G + delta I``; delta grows, and says so, where that is not positive definite."""
        mean = self.gram.diagonal(dim1=1, dim2=2).mean(1)
        while True:
            factor = torch.empty_like(self.gram, memory_format=torch.contiguous_format).mT.copy_(self.gram)
            factor.diagonal(dim1=1, dim2=2).add_(self.delta[:, None])
            info = torch.empty(self.groups, dtype=torch.int32, device=factor.device)
            torch.linalg.cholesky_ex(factor, out=(factor, info))  # by columns: LAPACK needs no copy
            bad = info > 0
            if not bool(bad.any()):
                return factor
            if bool((bad & ~(self.delta < 0.1 * mean)).any()):
                raise ValueError(
                    "gram: expected a positive semidefinite matrix, got one that a ridge of 0.1 does not make definite"
                )
            self.delta = torch.where(bad, (10 * self.delta).clamp(min=1e-10 * mean, max=0.1 * mean), self.delta)
            warnings.warn(
                "gram: G + delta I is not positive definite; delta raised to "
                f"{float((self.delta / mean)[bad].max()):.1g} of the mean diagonal",
                stacklevel=4,
            )

    def solution(self) -> Tensor:
        """The minimizer on all units, ``[groups, d, n]``."""
        right = self.cross + self.delta[:, None, None] * self.weight
        return solved(self.factor, right.mT).mT

    def refit(self, mask: Tensor) -> Tensor:
        """The minimizer on the units of a mask ``[groups, units]``, zero elsewhere, ``[groups, d, n]``."""
        out = torch.zeros_like(self.cross)
        for g, (at, root) in enumerate(self._roots or self._rooted(mask)):
            right = self.cross[g][:, at] + self.delta[g] * self.weight[g][:, at]
            out[g][:, at] = solved(root, right.T).T
        return out

    def hold(self, mask: Tensor) -> None:
        """Keep the factors of a mask: from now on :meth:`refit` is asked for this one alone."""
        self._roots = self._rooted(mask)

    def take_cross(self, cross: Tensor) -> None:
        """Another M, of the same shape.

        Raises:
            ValueError: it has another shape, or holds NaN or inf.
        """
        wide = cross.detach().to(torch.float64)
        wide = wide if self.batched else wide[None]
        if wide.shape != self.cross.shape:
            raise ValueError(f"cross: expected shape {tuple(self.cross.shape)}, got {tuple(wide.shape)}")
        if not all_finite(wide):
            raise ValueError("cross: expected finite numbers, got NaN or inf")
        self.cross = _times_power(wide, -self.power) if self.power else wide

    def _rooted(self, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each group the columns of a mask, and the Cholesky factor of ``G + delta I`` on them."""
        roots = []
        for g in range(self.groups):
            at = mask[g].repeat_interleave(self.block).nonzero().flatten()
            system = self.gram[g][at][:, at]
            system.diagonal().add_(self.delta[g])
            root, info = torch.linalg.cholesky_ex(system, check_errors=self._known is not None)
            if int(info):  # rounding, beside a small ridge
                self._known = self._factor()  # raises delta
                return self._rooted(mask)
            roots.append((at, root))
        return roots

    def loss(self, weight: Tensor) -> float:
        """``f_S`` up to a constant of S = all units."""
        change = (weight - self.weight).square().sum((1, 2))
        return float((self.delta * change).sum()) - self.explained(weight)

    def explained(self, weight: Tensor) -> float:
        return float((weight * (2 * self.cross - weight @ self.gram)).sum())

    def as_given(self, tensor: Tensor) -> Tensor:
        """An error, energy or ridge in the units of the arguments."""
        return _times_power(tensor, self.power) if self.power else tensor

    def by_unit(self, matrix: Tensor) -> Tensor:
        """``[groups, d, n]`` as ``[groups, units, block, d]``."""
        return matrix.unflatten(2, (self.own_units, self.block)).permute(0, 2, 3, 1)

    def diagonal_blocks(self) -> Tensor:
        """``[groups, units, block, block]``."""
        every = torch.arange(self.own_units, device=self.gram.device)
        blocks = self.gram.unflatten(2, (-1, self.block)).unflatten(1, (-1, self.block))
        return blocks.permute(0, 1, 3, 2, 4)[:, every, every]

    def unit_mask(self, kept: Tensor | tuple[int, ...]) -> Tensor:
        mask = torch.zeros(self.units, dtype=torch.bool, device=self.gram.device)
        if isinstance(kept, Tensor):
            mask[kept] = True
        return mask.view(self.groups, self.own_units)

    def largest(self, score: Tensor, count: int) -> Tensor:
        """The units of the largest scores ``[groups, units]``, ``count`` in all and as many in each set, as a mask."""
        mask = torch.zeros(score.shape, dtype=torch.bool, device=score.device)
        per_set = min(count // self.num_sets, self.units // self.num_sets)
        sets = torch.zeros(self.own_units, dtype=torch.int64, device=score.device) if self.sets is None else self.sets
        for g in range(self.groups):
            for s in range(self.num_sets // self.groups):
                members = (sets == s).nonzero().flatten()
                mask[g, members] = group_topk(score[g, members], per_set)
        return mask

    def numbered(self, order: Tensor) -> Tensor:
        """Units of each group ``[groups, steps]`` numbered through the groups."""
        return order + self.own_units * torch.arange(self.groups, device=order.device)[:, None]

    def compact(self, weight: Tensor, mask: Tensor) -> Tensor:
        """The columns of the units kept, ``[groups, d, keep / groups * block]``."""
        columns = mask.repeat_interleave(self.block, dim=1)
        return torch.stack([w[:, at] for w, at in zip(weight, columns, strict=True)])

    def shaped(self, weight: Tensor) -> Tensor:
        return weight if self.batched else weight[0]
