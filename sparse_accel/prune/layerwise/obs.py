"""Exact greedy OBS, row by row: the slow reference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparse_accel.ops import topk_threshold_
from sparse_accel.prune.layerwise.problem import LayerProblem
from sparse_accel.prune.layerwise.targets import Projection

CHUNK_BYTES = 1 << 28  # of the largest temporary


def obs(problem: LayerProblem, target: Projection) -> tuple[Tensor, Tensor]:
    """Frantar & Alistarh, "Optimal brain compression", NeurIPS 2022.

    In each row the weight of the least damage goes, the others readjust, and so on; over a whole tensor the rows'
    sequences are merged by damage.

    In float64. ``O(R C^3)``: for layers of some hundred inputs.

    Raises:
        ValueError: the target has groups.
    """
    if target.in_row is None:
        target.stretch(0, target.shape[1])  # refuses groups
    rows, columns = problem.weight.shape
    hessian, weight = problem.hessian.double(), problem.weight.double()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    steps = columns if target.in_row is None else columns - target.in_row
    chunk = max(1, CHUNK_BYTES // (8 * columns * max(steps, 1)))
    traces = [_eliminate(weight[i : i + chunk], inverse, steps, target) for i in range(0, rows, chunk)]
    order, damage = (torch.cat(part) for part in zip(*traces, strict=True))  # [R, steps]
    if target.in_row is None:
        rising = damage.cummax(1).values
        gone = ~topk_threshold_(rising.flip(0, 1).clone(), None, target.kept).flip(0, 1)
    else:
        gone = torch.ones_like(order, dtype=torch.bool)
    mask = torch.ones_like(weight, dtype=torch.bool).scatter_(1, order, ~gone)
    solution = torch.empty_like(weight)
    chunk = max(1, CHUNK_BYTES // (8 * columns * columns))
    for i in range(0, rows, chunk):
        solution[i : i + chunk] = least_squares(weight[i : i + chunk], mask[i : i + chunk], hessian)
    return solution.to(problem.weight.dtype), mask


def least_squares(weight: Tensor, mask: Tensor, hessian: Tensor) -> Tensor:
    """``argmin tr((X - W) H (X - W)^T)`` over X on the mask, one factorization for each row.

    Args:
        weight: W ``[R, C]``.
        mask: bool ``[R, C]``.
        hessian: H ``[C, C]``, positive definite.

    Returns:
        X ``[R, C]``.
    """
    inside = mask.to(weight.dtype)
    systems = hessian * inside[:, :, None] * inside[:, None, :]
    systems.diagonal(dim1=1, dim2=2).add_(1 - inside)
    right = (weight @ hessian * inside)[:, :, None]
    return torch.cholesky_solve(right, torch.linalg.cholesky(systems))[:, :, 0] * inside


def _eliminate(weight: Tensor, inverse: Tensor, steps: int, target: Projection) -> tuple[Tensor, Tensor]:
    """The weights removed from each row and their damages, in order, int64 and float64 ``[R, steps]``.

    The inverse of what is left of H is ``H^-1 - V^T V``, never formed.
    """
    rows, columns = weight.shape
    weight = weight.clone()
    diagonal = inverse.diagonal().repeat(rows, 1)
    vectors = weight.new_empty(rows, steps, columns)
    order = torch.empty(rows, steps, dtype=torch.int64, device=weight.device)
    damages = weight.new_empty(rows, steps)
    alive = torch.ones_like(weight, dtype=torch.bool)
    each = torch.arange(rows, device=weight.device)
    for step in range(steps):
        damage = (weight.square() / diagonal).masked_fill_(~_removable(alive, target), math.inf)
        damages[:, step], chosen = damage.min(1)
        order[:, step] = chosen
        earlier = vectors[:, :step]
        column = inverse[chosen] - (earlier[each, :, chosen][:, None] @ earlier)[:, 0]
        pivot = column[each, chosen][:, None]
        weight -= weight[each, chosen][:, None] / pivot * column
        vectors[:, step] = column / pivot.sqrt()
        alive[each, chosen] = False
        diagonal = torch.where(alive, diagonal - vectors[:, step].square(), 1.0)
    return order, damages


def _removable(alive: Tensor, target: Projection) -> Tensor:
    """Weights still there, and of n:m runs only those with more than n left."""
    if not target.run:
        return alive
    rows, columns = alive.shape
    padded = torch.nn.functional.pad(alive, (0, -columns % target.run)).view(rows, -1, target.run)
    more = padded.sum(2, keepdim=True) > target.in_run
    return (padded & more).view(rows, -1)[:, :columns]
