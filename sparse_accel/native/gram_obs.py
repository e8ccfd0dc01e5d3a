"""Block backward elimination in Gram matrices.

Q and N = W' W are held whole: with Q_cc = L L', V = L^-1 Q_c:, S = L^-1 N_cc L^-T and A = L^-1 N_c: - S V / 2, removing
unit c leaves Q - V' V and N - A' V - V' A, at the cost tr S. On the CPU downdates are kept in a panel, many units at a
time, and kernels bring up to date what the choice of the next needs; of Q and N only the lower triangles are kept up to
date, and W is held in N's place where it has few rows. On a GPU all problems step together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._module import check_device, check_dtype, kernels, on_cuda, shown

_OP = "gram_obs"
_ROWS = 512  # of a large matrix that are copied or changed at a time
_LANES = 8  # columns that a kernel makes of W at a time
_PANEL = 64  # rows kept apart: a product with the whole matrix is then worth its passes over memory


@torch.no_grad()
def gram_obs(inverse: Tensor, weight: Tensor, block: int, steps: int, sets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Order of removal and costs, ``[problems, steps]``."""
    _check(inverse, weight, block, steps, sets)
    problems = inverse.shape[0]
    order = inverse.new_zeros((problems, steps), dtype=torch.int64)
    damages = inverse.new_zeros((problems, steps))
    if problems == 0 or steps == 0:
        return order, damages
    check_device(_OP, "inverse", inverse)
    if on_cuda(inverse):
        _eliminate_batched(inverse, weight, block, sets, order, damages)
    else:
        for problem in zip(inverse, weight, order, damages, strict=True):
            _eliminate(*problem, block, sets)
    if not bool(damages.isfinite().all()):
        raise ValueError(f"{_OP}: inverse: expected positive definite matrices, and finite weights")
    return order, damages


def _check(inverse: Tensor, weight: Tensor, block: int, steps: int, sets: Tensor | None) -> None:
    check_dtype(_OP, "inverse", inverse, (torch.float64,))
    check_dtype(_OP, "weight", weight, (torch.float64,))
    if inverse.dim() != 3 or inverse.shape[1] != inverse.shape[2]:
        raise ValueError(f"{_OP}: inverse: expected [problems, n, n], got {list(inverse.shape)}")
    problems, n = inverse.shape[:2]
    if weight.dim() != 3 or weight.shape[0] != problems or weight.shape[2] != n:
        raise ValueError(
            f"{_OP}: weight: expected [problems, d, n] with {problems} problems and n = {n}, got {list(weight.shape)}"
        )
    if weight.device != inverse.device:
        raise ValueError(f"{_OP}: weight: expected device {inverse.device}, got {weight.device}")
    if block < 1 or n % block:
        raise ValueError(f"{_OP}: block: expected a divisor of {n}, the number of columns, got {block}")
    units = n // block
    if not 0 <= steps <= units:
        raise ValueError(f"{_OP}: steps: expected 0 to {units}, the number of units, got {steps}")
    if sets is None or units == 0:
        return
    if sets.dim() != 1 or sets.shape[0] != units or sets.dtype != torch.int64 or sets.device != inverse.device:
        raise ValueError(
            f"{_OP}: sets: expected [{units}] int64 on {inverse.device}, got {list(sets.shape)} {shown(sets.dtype)} "
            f"on {sets.device}"
        )
    low, high = (int(number) for number in sets.aminmax())
    if low < 0 or high >= units:
        wrong = low if low < 0 else high
        raise ValueError(f"{_OP}: sets: expected numbers in [0, {units}), got {wrong}")
    sizes = sets.bincount().tolist()
    if len(set(sizes)) > 1:
        raise ValueError(f"{_OP}: sets: expected sets of equal size, numbered from 0, got sizes {sizes}")


def _eliminate(
    inverse: Tensor, weight: Tensor, order: Tensor, damages: Tensor, block: int, sets: Tensor | None
) -> None:
    """One problem on the CPU; costs after one that is not finite are infinite."""
    units, steps = inverse.shape[0] // block, order.numel()
    width, padded = kernels().gram_obs_order(units)
    w = weight.reshape(-1, units, block).transpose(1, 2)
    q = _padded(inverse.reshape(units, block, units, block).permute(1, 0, 3, 2), padded)
    n: Moment = (_ByWeight if 2 * len(w) <= block * units else _Whole)(w, padded)
    number = torch.full((padded,), -1, device="cpu")
    number[:units] = torch.arange(units, device="cpu")
    gone = None if sets is None else sets.new_zeros(int(sets.max()) + 1)
    set_of = None if sets is None else sets.contiguous()
    done = 0
    while done < steps:
        capacity = min(max(1, _PANEL // block), steps - done) * block
        v = q.new_empty(block * padded // width, capacity, width)
        a = torch.empty_like(v)
        place = torch.empty(units, dtype=torch.int64, device="cpu")
        place[number[number >= 0]] = (number >= 0).nonzero().flatten()
        own = q.diagonal(0, 1, 3).contiguous(), n.own
        found = (order[done:], damages[done:])
        removed = kernels().gram_obs_panel(q, n.shown(), v, a, *own, number, set_of, gone, steps - done, *found)
        places = place[order[done : done + removed]]
        done += removed
        if removed == 0 or done == steps:
            break
        rows = removed * block
        x, y = (panel[:, :rows].transpose(0, 1).reshape(rows, block, padded) for panel in (v, a))
        n.learn(x, places)
        left = (number >= 0).nonzero().flatten()
        narrower, fewer = kernels().gram_obs_order(left.numel())
        if fewer * 8 <= padded * 7:  # enough are gone to pay for a copy
            q = _narrowed(q, left, fewer)  # one after the other: they are large
            n.narrow(left, fewer)
            pad = (0, fewer - left.numel())
            x, y = (torch.nn.functional.pad(panel.index_select(2, left), pad) for panel in (x, y))
            number = torch.nn.functional.pad(number.index_select(0, left), pad, value=-1)
            width, padded = narrower, fewer
        x, y = x.reshape(rows, -1), y.reshape(rows, -1)
        _subtract(q, x, x)
        n.remove(x, y)
    damages[done:] = math.inf


class _Whole:
    """N itself, ``[block, units, block, units]``."""

    def __init__(self, w: Tensor, padded: int) -> None:
        block, units = w.shape[1:]
        flat = w.reshape(-1, block * units)
        n = torch.mm(flat.T, flat).view(block, units, block, units)
        self._n = n if units == padded else _padded(n, padded)

    @property
    def own(self) -> Tensor:
        """The diagonal blocks, ``[block, block, units]``; the kernel brings them up to date."""
        return self._n.diagonal(0, 1, 3).contiguous()

    def shown(self) -> Tensor:
        """What the kernel is given."""
        return self._n

    def learn(self, x: Tensor, places: Tensor) -> None:
        """The panel's rows of V, before anything is narrowed, and where in it the removed units stood."""

    def narrow(self, left: Tensor, padded: int) -> None:
        """Keep some units."""
        self._n = _narrowed(self._n, left, padded)

    def remove(self, x: Tensor, y: Tensor) -> None:
        """N - A' V - V' A, with V and A as ``[rows, block * units]``."""
        _subtract(self._n, torch.cat((y, x)), torch.cat((x, y)))


class _ByWeight:
    """W in N's place, ``[outputs, block, units]``: of few outputs it is smaller, and cheaper to bring up to date.

    Removing unit c leaves ``W - W_c L^-T V``. So a panel leaves W - U V with ``U V_R = W_R``, R the columns of the
    removed units in their order, of which V_R is upper triangular: of later units V has nothing.
    """

    def __init__(self, w: Tensor, padded: int) -> None:
        self._w = torch.nn.functional.pad(w, (0, padded - w.shape[2])).contiguous()
        self._u = w.new_empty(0, 0)
        by_unit = self._w.permute(2, 1, 0)
        self.own = (by_unit @ by_unit.mT).permute(1, 2, 0).contiguous()

    def shown(self) -> Tensor:
        return self._w.flatten(1).unflatten(1, (-1, _LANES)).transpose(0, 1).contiguous()

    def learn(self, x: Tensor, places: Tensor) -> None:
        of_removed = x[:, :, places].transpose(1, 2).flatten(1)
        columns = self._w[:, :, places].transpose(1, 2).flatten(1)
        self._u = torch.linalg.solve_triangular(of_removed, columns, upper=True, left=False)

    def narrow(self, left: Tensor, padded: int) -> None:
        pad = (0, padded - left.numel())
        self._w, self.own = (torch.nn.functional.pad(t.index_select(2, left), pad) for t in (self._w, self.own))

    def remove(self, x: Tensor, y: Tensor) -> None:
        self._w.view(len(self._w), -1).addmm_(self._u, x, alpha=-1)


Moment = _Whole | _ByWeight


def _subtract(matrix: Tensor, left: Tensor, right: Tensor) -> None:
    """A symmetric ``left^T right`` from the lower triangle of a matrix, ``[block, units, block, units]``, in place."""
    columns = left.shape[1]
    flat = matrix.view(columns, columns)
    for start in range(0, columns, _ROWS):
        stop = min(start + _ROWS, columns)
        flat[start:stop, :stop].addmm_(left[:, start:stop].T, right[:, :stop], alpha=-1)


def _padded(matrix: Tensor, padded: int) -> Tensor:
    """``[block, units, block, units]`` of any strides, with zeros up to ``[block, padded, block, padded]``; of the
    blocks above the diagonal, zeros."""
    block, units = matrix.shape[:2]
    out = matrix.new_zeros(block, padded, block, padded)
    for t in range(block):
        out[t, :units, : t + 1, :units] = matrix[t, :, : t + 1]
    return out


def _narrowed(matrix: Tensor, left: Tensor, padded: int) -> Tensor:
    """Some units of a matrix of :func:`_padded`, in as narrow a one; a few rows at a time."""
    block, units = matrix.shape[0], left.numel()
    out = matrix.new_zeros(block, padded, block, padded)
    for t in range(block):
        for rows, own in zip(left.split(_ROWS), out[t, :units, : t + 1, :units].split(_ROWS), strict=True):
            own.copy_(matrix[t, :, : t + 1].index_select(0, rows).index_select(2, left))
    return out


def _eliminate_batched(
    inverse: Tensor, weight: Tensor, block: int, sets: Tensor | None, order: Tensor, damages: Tensor
) -> None:
    """All problems together; the host waits for nothing."""
    problems, n, k = inverse.shape[0], inverse.shape[1], block
    units, steps = n // k, order.shape[1]
    q, m = inverse.clone(memory_format=torch.contiguous_format), weight.mT @ weight
    every, columns = torch.arange(units, device=q.device), torch.arange(k, device=q.device)
    eye = torch.eye(k, dtype=q.dtype, device=q.device)
    left = torch.ones(problems, units, dtype=torch.bool, device=q.device)
    set_of = (torch.zeros_like(every) if sets is None else sets).expand(problems, units)
    gone = order.new_zeros(problems, 1 if sets is None else int(sets.max()) + 1)
    one = order.new_ones(problems, 1)

    def own(matrix: Tensor) -> Tensor:  # [problems, units, k, k]
        return matrix.view(problems, units, k, units, k).diagonal(0, 1, 3).permute(0, 3, 1, 2)

    def of_unit(blocks: Tensor, unit: Tensor) -> Tensor:  # [problems, k, k]
        return blocks.gather(1, unit.view(-1, 1, 1, 1).expand(-1, 1, k, k)).squeeze(1)

    def solve_lower(lower: Tensor, right: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(lower, right, upper=False)

    for step in range(steps):
        root, info = torch.linalg.cholesky_ex(torch.where(left.view(problems, units, 1, 1), own(q), eye))
        damage = solve_lower(root, solve_lower(root, own(m)).mT)  # S of every unit
        cost = damage.diagonal(0, 2, 3).sum(-1).clamp_min(0)
        free = left & (gone.gather(1, set_of) == gone.amin(1, keepdim=True))
        score = torch.where(free & (info == 0) & cost.isfinite(), cost, math.inf)
        least = score.amin(1, keepdim=True)
        unit = torch.where((score == least) & free, every, units - 1).amin(1)  # [problems]
        order[:, step], damages[:, step] = unit, least.squeeze(1)
        rows = (unit.view(-1, 1) * k + columns).unsqueeze(2).expand(-1, -1, n)
        pivot, half = of_unit(root, unit), of_unit(damage, unit) / 2
        v = solve_lower(pivot, q.gather(1, rows))
        a = torch.baddbmm(solve_lower(pivot, m.gather(1, rows)), half, v, alpha=-1)
        q.baddbmm_(v.mT, v, alpha=-1)
        m.baddbmm_(a.mT, v, alpha=-1)
        m.baddbmm_(v.mT, a, alpha=-1)
        left.scatter_(1, unit.view(-1, 1), False)
        gone.scatter_add_(1, set_of.gather(1, unit.view(-1, 1)), one)
