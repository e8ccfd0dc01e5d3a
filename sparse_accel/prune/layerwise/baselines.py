"""Magnitude, SparseGPT and ADMM with conjugate gradients: what layer-wise solvers are measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_accel.prune.layerwise.iht import damped_inverse
from sparse_accel.prune.layerwise.problem import LayerProblem
from sparse_accel.prune.layerwise.targets import Projection

ADMM_ITERATIONS = 300
SPARSEGPT_BLOCK = 128


def magnitude(problem: LayerProblem, target: Projection) -> tuple[Tensor, Tensor]:
    """Keep the largest weights as they are."""
    mask = target.keep_(problem.weight / problem.scale)
    return problem.weight * mask, mask


def admm(problem: LayerProblem, target: Projection) -> tuple[Tensor, Tensor, int]:
    """Meng et al., "ALPS: improved optimization for highly sparse one-shot pruning", NeurIPS 2024, algorithm 1.

    ``rho`` starts at 0.1 and grows every third iteration by 1.3, 1.2 or 1.1, by how much of the support changed since
    the last time; it ends when nothing did, or after 300 iterations. ``(H + rho I)^-1`` is formed anew by a Cholesky
    factorization, which is faster than the paper's one eigendecomposition.
    """
    hessian, weight = problem.hessian, problem.weight
    rho = 0.1
    inverse = damped_inverse(hessian, rho)
    before = target.keep_(weight.clone())
    kept, dual = weight.clone(), torch.zeros_like(weight)  # dual: the paper's V / rho
    mask, iteration = before, 0
    towards, step = torch.empty_like(weight), torch.empty_like(weight)
    for iteration in range(1, ADMM_ITERATIONS + 1):
        torch.sub(kept, dual, out=towards).sub_(weight)
        torch.addmm(weight, towards, inverse, alpha=rho, out=step)
        dual.add_(step)
        mask = target.keep_(kept.copy_(dual))
        dual.sub_(kept)
        if iteration % 3 == 0:
            changed = int((mask ^ before).sum())  # in and out
            before = mask
            if not changed:
                break
            growth = 1.3 if changed >= 0.1 * target.kept else 1.2 if changed >= 0.005 * target.kept else 1.1
            rho *= growth
            dual /= growth
            inverse = damped_inverse(hessian, rho)
    return kept, mask, iteration


def sparsegpt(problem: LayerProblem, target: Projection) -> tuple[Tensor, Tensor]:
    """Frantar & Alistarh, "SparseGPT: massive language models can be accurately pruned in one-shot", ICML 2023.

    Columns from left to right; the error of what is removed goes to the columns on its right, at once inside a block of
    about 128 and in one product after it. Masks are chosen a block (n:m: a run of m) ahead, by OBS's damage.
    """
    factor = _inverse_factor(problem.hessian)
    weight = problem.weight.clone()
    mask = torch.zeros_like(weight, dtype=torch.bool)
    columns = weight.shape[1]
    run = target.run or SPARSEGPT_BLOCK
    width = SPARSEGPT_BLOCK // run * run
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        block = weight[:, start:stop].mT.contiguous()  # [columns, R]: a column is contiguous
        errors = torch.empty_like(block)
        damage = factor.diagonal()[start:stop, None]
        inside = torch.empty_like(block)
        for local in range(stop - start):
            if local % run == 0:
                end = min(local + run, stop - start)
                ahead = (block[local:end] / damage[local:end]).mT.contiguous()
                chosen = target.stretch(start + local, start + end).keep_(ahead)
                mask[:, start + local : start + end] = chosen
                inside[local:end] = chosen.mT
            removed = errors[local].copy_(block[local]).addcmul_(block[local], inside[local], value=-1)
            removed.div_(damage[local])
            block[local + 1 :].addr_(factor[start + local, start + local + 1 : stop], removed, alpha=-1)
        weight[:, start:stop] = block.mT
        weight[:, stop:].addmm_(errors.mT, factor[start:stop, stop:], alpha=-1)
    return weight.mul_(mask), mask


def _inverse_factor(hessian: Tensor) -> Tensor:
    """The upper triangular U with ``H^-1 = U^T U``, without forming the inverse: H backwards is ``L L^T``."""
    upper = torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)
    return torch.linalg.solve_triangular(
        upper, torch.eye(len(upper), dtype=upper.dtype, device=upper.device), upper=True
    )
