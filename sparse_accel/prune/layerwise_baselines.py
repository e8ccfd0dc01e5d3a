"""Magnitude, SparseGPT and ADMM with conjugate gradients: what layer-wise solvers are measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_accel.prune.layerwise_iht import damped_inverse
from sparse_accel.prune.layerwise_problem import LayerProblem
from sparse_accel.prune.targets import Projection

ADMM_ITERATIONS = 300


def magnitude(problem: LayerProblem, target: Projection) -> tuple[Tensor, Tensor]:
    """Keep the largest weights as they are."""
    mask = target.mask((problem.original.to(problem.weight.dtype) / problem.size).square())
    return torch.where(mask, problem.weight, 0.0), mask


def admm(problem: LayerProblem, target: Projection) -> tuple[Tensor, Tensor, int]:
    """Meng et al., "ALPS: improved optimization for highly sparse one-shot pruning", NeurIPS 2024, algorithm 1.

    ``rho`` starts at 0.1 and grows every third iteration by 1.3, 1.2 or 1.1, by how much of the support changed since
    the last time; it ends when nothing did, or after 300 iterations.
    """
    hessian, weight = problem.hessian, problem.weight
    gradient = weight @ hessian
    rho = 0.1
    inverse = damped_inverse(hessian, torch.full_like(hessian.diagonal(), rho))
    kept, dual = weight, torch.zeros_like(weight)  # dual: V / rho
    mask = before = target.mask(weight.square())
    iteration = 0
    for iteration in range(1, ADMM_ITERATIONS + 1):
        point = torch.add(gradient, kept - dual, alpha=rho) @ inverse
        dual += point
        mask = target.mask(dual.square())
        kept = torch.where(mask, dual, 0.0)
        dual -= kept
        if iteration % 3 == 0:
            changed = int((mask ^ before).sum())  # of both sets
            before = mask
            if not changed:
                break
            grow = 1.3 if changed >= 0.1 * target.kept else 1.2 if changed >= 0.005 * target.kept else 1.1
            rho *= grow
            dual /= grow
            inverse = damped_inverse(hessian, torch.full_like(hessian.diagonal(), rho))
    return kept, mask, iteration


SPARSEGPT_BLOCK = 128


def sparsegpt(problem: LayerProblem, target: Projection) -> tuple[Tensor, Tensor]:
    """Frantar & Alistarh, "SparseGPT: massive language models can be accurately pruned in one-shot", ICML 2023.

    Columns from left to right; the error of what is removed goes to the columns on its right, at once inside a block of
    128 and in one product after it. Masks are chosen a block (n:m: a run of m) ahead, by OBS's damage.
    """
    factor = torch.linalg.cholesky(damped_inverse(problem.hessian, torch.zeros_like(problem.scale))).mT.contiguous()
    weight = problem.weight.clone()
    mask = torch.zeros_like(weight, dtype=torch.bool)
    columns = weight.shape[1]
    width = SPARSEGPT_BLOCK // (target.run or 1) * (target.run or 1)
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        block = weight[:, start:stop].mT.contiguous()  # [columns, R]: a column is contiguous
        errors = torch.empty_like(block)
        damage = factor.diagonal()[start:stop, None]
        for i in range(start, stop):
            if i == start or (target.run and i % target.run == 0):
                end = min(i + target.run, columns) if target.run else stop
                ahead = (block[i - start : end - start] / damage[i - start : end - start]).square()
                mask[:, i:end] = target.stretch(i, end).mask(ahead.mT)
            local = i - start
            errors[local] = block[local].masked_fill(mask[:, i], 0.0) / factor[i, i]
            block[local + 1 :].addr_(factor[i, i + 1 : stop], errors[local], alpha=-1)
        weight[:, start:stop] = block.mT
        weight[:, stop:].addmm_(errors.mT, factor[start:stop, stop:], alpha=-1)
    return torch.where(mask, weight, 0.0), mask
