"""Curvature IHT for one layer: iterative hard thresholding with a dual variable, in a cavity curvature metric."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_accel.prune.layerwise.problem import LayerProblem
from sparse_accel.prune.layerwise.targets import Projection

LADDER = (0.4, 1.05)  # of rho
LATE_START = 0.55  # of rho, where supports settle slowly: n:m patterns, and dense ones of wide layers
SETTLED = 0.003  # share of the support that moves in a step when it is time to stop
RELAX, RELAX_FROM = 0.85, 0.4  # of the dual step, from this density on


def curvature_iht(problem: LayerProblem, target: Projection, iterations: int) -> tuple[Tensor, Tensor, int]:
    """A sparse weight on a support found in so many steps, not refit yet.

    Each step takes a damped Newton step of the error in the metric ``rho diag(d)``, d the :func:`cavity_curvature`, and
    keeps the largest ``d x^2``; the dual variable U remembers what the projection cut. ``rho`` climbs a geometric
    ladder. In coordinates scaled by ``sqrt(d)`` the metric is ``rho I``, and the minimizer of the error plus
    ``rho ||X - D + U||^2`` is ``W + rho (D - U - W) (H + rho I)^-1``.

    Args:
        problem: the layer.
        target: what to keep.
        iterations: T; at most T - 1 products with a ``[C, C]`` matrix, T projections, and some inverses of it. In the
            last quarter it ends early once two steps in a row have moved next to nothing.

    Returns:
        The weight in the problem's coordinates and its mask, ``[R, C]``; the number of iterations.
    """
    rows, columns = problem.weight.shape
    tall = columns < rows  # an inverse costs less than a product: rho changes often
    rung = 4 if tall else max(4, -(-iterations // 5))
    metric = cavity_curvature(problem.hessian, target.density, rounds=3 if tall else 2).sqrt_()
    hessian = problem.hessian / metric / metric[:, None]
    weight = problem.weight * metric
    relax = RELAX if target.density >= RELAX_FROM else 1.0
    slow = target.density >= RELAX_FROM and (target.run > 0 or columns > rows)
    rho = LATE_START if slow else LADDER[0]
    ratio = (LADDER[1] / rho) ** (1 / max(1, -(-iterations // rung) - 1))
    kept = weight.clone()
    mask = target.keep_(kept)
    dual = weight - kept
    towards, step = torch.empty_like(weight), torch.empty_like(weight)
    t = calm = 0
    for t in range(1, iterations):
        if t % rung == 0:
            rho *= ratio
            dual /= ratio
        if t % rung == 0 or t == 1:
            inverse = damped_inverse(hessian, rho)
        torch.sub(kept, dual, out=towards).sub_(weight)
        torch.addmm(weight, towards, inverse, alpha=rho, out=step)
        torch.add(step, dual, out=kept)
        before, mask = mask, target.keep_(kept)
        if 4 * t >= 3 * iterations:
            calm = calm + 1 if int((mask ^ before).sum()) < SETTLED * target.kept else 0
            if calm == 2:
                break
        dual.add_(step.sub_(kept), alpha=relax)
    return kept.div_(metric), mask, t + 1


def damped_inverse(hessian: Tensor, diagonal: Tensor | float) -> Tensor:
    """``(H + diag(diagonal))^-1``, positive definite."""
    shifted = hessian.clone()
    shifted.diagonal().add_(diagonal)
    return torch.cholesky_inverse(torch.linalg.cholesky(shifted))


def cavity_curvature(hessian: Tensor, density: float, rounds: int = 3) -> Tensor:
    """``1 / [(H_SS)^-1]_ii`` for random supports S of a density, estimated by self-consistency.

    The curvature of the error along weight i after its kept neighbours have readjusted: diag H where little is kept,
    OBS's ``1 / [H^-1]_ii`` where all is. Weights outside of S act as if held by springs ``mu``.

    Args:
        hessian: ``[C, C]`` with a unit diagonal.
        density: in [0, 1].
        rounds: of the iteration, an inverse each; the third moves little.

    Returns:
        ``[C]``.
    """
    curvature = torch.ones_like(hessian.diagonal())
    density = min(max(density, 0.02), 0.999)
    for _ in range(rounds):
        spring = curvature * ((1 - density) / density)
        inverse = damped_inverse(hessian, spring)
        curvature = (inverse.diagonal().reciprocal() - spring).clamp_(min=1e-3)
    return curvature
