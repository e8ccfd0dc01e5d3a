"""Curvature IHT for one layer: iterative hard thresholding with a dual variable, in a cavity curvature metric."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_accel.prune.layerwise_problem import LayerProblem
from sparse_accel.prune.targets import Projection

RUNG = 4  # iterations between changes of the step
LADDER = (0.4, 1.05)


def curvature_iht(problem: LayerProblem, target: Projection, iterations: int) -> tuple[Tensor, Tensor]:
    """A sparse weight on a support found in so many steps, not refit yet.

    Each step takes a damped Newton step of the error in the metric ``rho diag(d)`` and keeps the largest ``d x^2``; the
    dual variable ``U`` remembers what the projection cut. ``rho`` climbs a geometric ladder.

    Args:
        problem: the layer.
        target: what to keep.
        iterations: T; T - 1 products with a ``[C, C]`` matrix, T projections, 3 + T / 4 inverses.

    Returns:
        The weight in scaled coordinates and its mask, ``[R, C]``.
    """
    hessian, weight = problem.hessian, problem.weight
    density = target.density
    curvature = cavity_curvature(hessian, density)
    relax = 0.85 if density >= 0.4 else 1.0
    gradient = weight @ hessian
    rungs = -(-iterations // RUNG)
    ratio = (LADDER[1] / LADDER[0]) ** (1 / max(1, rungs - 1))
    point, rho = weight, LADDER[0]
    kept = dual = step = weight
    mask = torch.ones_like(weight, dtype=torch.bool)
    for t in range(iterations):
        if t % RUNG == 0 or t == 1:
            rho_new = LADDER[0] * ratio ** (t // RUNG)
            if t > 1:
                dual.mul_(rho / rho_new)
            rho = rho_new
            if t:
                inverse = damped_inverse(hessian, rho * curvature)
        if t:
            step = torch.addcmul(gradient, kept - dual, rho * curvature) @ inverse
            point = step + dual
        mask = target.mask(point.square().mul_(curvature))
        kept = torch.where(mask, point, 0.0)
        dual = point - kept
        if t and relax != 1.0:
            dual.add_(step - kept, alpha=relax - 1.0)
    return kept, mask


def damped_inverse(hessian: Tensor, diagonal: Tensor) -> Tensor:
    """``(H + diag(diagonal))^-1``, positive definite."""
    shifted = hessian.clone()
    shifted.diagonal().add_(diagonal)
    return torch.cholesky_inverse(torch.linalg.cholesky(shifted))


def cavity_curvature(hessian: Tensor, density: float) -> Tensor:
    """``1 / [(H_SS)^-1]_ii`` for random supports S of a density, estimated by self-consistency.

    The curvature of the error along weight i after its kept neighbours have readjusted: diag H where little is kept,
    OBS's ``1 / [H^-1]_ii`` where all is. Weights outside of S act as if held by springs ``mu``.

    Args:
        hessian: ``[C, C]`` with a unit diagonal.
        density: in [0, 1].

    Returns:
        ``[C]``.
    """
    curvature = torch.ones_like(hessian.diagonal())
    density = min(max(density, 0.02), 0.999)
    for _ in range(3):
        spring = curvature * ((1 - density) / density)
        inverse = damped_inverse(hessian, spring)
        curvature = (inverse.diagonal().reciprocal() - spring).clamp_(min=1e-3)
    return curvature
