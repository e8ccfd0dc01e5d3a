"""Groups of whole rows or whole columns, where better than iterating is known."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_accel.prune.layerwise.problem import LayerProblem
from sparse_accel.prune.layerwise.targets import Projection
from sparse_accel.prune.select.gram import gram_obs

RIDGE = 1e-6  # H is positive definite to float32's precision


def whole_rows(problem: LayerProblem, target: Projection) -> tuple[Tensor, Tensor]:
    """The exact minimizer over outputs: rows do not interact, and a row removed loses its energy ``w H w^T``."""
    weight = problem.weight
    energy = (weight @ problem.hessian).mul_(weight).sum(1, keepdim=True).clamp_(min=0)
    mask = target.keep_(energy.sqrt_().expand_as(weight).contiguous())
    return weight * mask, mask


def whole_columns(problem: LayerProblem, target: Projection) -> tuple[Tensor, Tensor]:
    """Input channels: backward elimination with exact refit, all rows on one support; see :func:`gram_obs`."""
    hessian, weight = problem.hessian.double(), problem.weight.double()
    block = weight.shape[1] // target.of_groups
    chosen = gram_obs(hessian, weight @ hessian, weight, block=block, keep=target.groups, ridge=RIDGE)
    columns = (chosen.kept[:, None] * block + torch.arange(block, device=weight.device)).flatten()
    solution = torch.zeros_like(weight).index_copy_(1, columns, chosen.weight)
    mask = torch.zeros_like(weight, dtype=torch.bool).index_fill_(1, columns, True)
    return solution.to(problem.weight.dtype), mask
