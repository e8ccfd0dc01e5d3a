"""One iteration of each method, on a batch of problems.

Sources: iht, Blumensath and Davies, "Iterative hard thresholding for compressed sensing", 2009; niht, Blumensath and
Davies, "Normalized iterative hard thresholding", 2010; htp, Foucart, "Hard thresholding pursuit", 2011; topk_iobs and
iobs, Wu et al., "The iterative optimal brain surgeon", NeurIPS 2024 (arXiv 2408.17163).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_accel.ops import topk_threshold_

from .curvature import REFIT_DAMPING, Curvature, Dense
from .objective import View
from .options import Options

TRIES = 30  # of a step length or a damping in one iteration


@dataclass
class State:
    """Where a batch of runs stands."""

    theta: Tensor  # [B, d]
    support: Tensor  # [B, d] bool
    loss: Tensor  # [B], of all rows
    gradient: Tensor | None  # [B, d] at theta on all rows, or None: not known
    scale: Tensor  # [B], the size of losses seen: what rounding is relative to
    damping: Tensor  # [B], float64, asked of the next curvature
    used: Tensor  # [B], float64, of the last one
    singular: Tensor  # [B], float64: the damping that a singular curvature made necessary
    stalled: Tensor  # [B] bool: no step lowers the loss
    smoothness: Tensor | None = None  # [B], the running estimate of backtracking

    def slack(self) -> Tensor:
        """By how much rounding may raise the loss: that of residuals is relative to what cancels in them."""
        eps, loss = torch.finfo(self.theta.dtype).eps, self.loss.abs()
        return 16 * eps * (loss + (loss * self.scale).sqrt() + eps * self.scale)


def project(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k entries of largest magnitude of ``[B, d]``, and where they are; ties to the lowest index."""
    theta, infinite = finite(values)
    mask = topk_threshold_(theta, None, k, by="row")
    return theta.masked_fill(infinite, torch.nan), mask


def finite(values: Tensor) -> tuple[Tensor, Tensor]:
    """A copy with zeros for runs ``[B, 1]`` that are not finite: projections refuse NaN, the loop ends such runs."""
    infinite = ~torch.isfinite(values).all(-1, keepdim=True)
    return values.masked_fill(infinite, 0.0), infinite


def spread(entries: Tensor, index: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """``entries [B, k]`` at ``index`` in zeros like ``like [B, d]``, and the mask of the places."""
    theta = torch.zeros_like(like).scatter(1, index, entries.to(like.dtype))
    return theta, torch.zeros_like(like, dtype=torch.bool).scatter(1, index, True)


def gradient_step(view: View, state: State, options: Options, shrink: float = 1.0) -> tuple[Tensor, Tensor]:
    """``T_k(theta - eta g)`` for iht and niht, eta times ``shrink``; htp goes on with a refit."""
    theta, k = state.theta, options.k
    gradient = view.gradient(theta) if state.gradient is None else state.gradient
    if options.step is not None:
        found = project(theta - options.step * gradient, k)
    elif options.method == "niht":
        found = _normalized(view, state, gradient, k, shrink)
    else:
        smoothness = view.smoothness()
        if smoothness is not None:
            found = project(theta - shrink * gradient / smoothness.clamp(min=_tiny(theta))[:, None], k)
        else:
            found = _backtracking(view, state, gradient, k, shrink)
    return refit(view, *found, state) if options.method == "htp" else found


def _tiny(value: Tensor) -> float:
    return torch.finfo(value.dtype).tiny


def _curvature_along(view: View, theta: Tensor, direction: Tensor) -> Tensor:
    """``u^T H u / u^T u``: ``[B]``."""
    return (direction * view.product(theta, direction)).sum(-1) / direction.square().sum(-1).clamp(min=_tiny(theta))


def _model_rise(view: View, state: State, gradient: Tensor, loss: Tensor, new: Tensor) -> Tensor:
    """The c of ``f(theta + u) = f + g.u + c/2 |u|^2``: ``[B]``; that of the Hessian where f is lost in rounding."""
    move = new - state.theta
    square, slope = move.square().sum(-1).clamp(min=_tiny(move)), (gradient * move).sum(-1)
    rise = 2 * (view.loss(new) - loss - slope) / square
    lost = slope.abs() <= 64 * state.slack()
    return torch.where(lost, _curvature_along(view, state.theta, move), rise) if bool(lost.any()) else rise


def _normalized(view: View, state: State, gradient: Tensor, k: int, shrink: float) -> tuple[Tensor, Tensor]:
    """The step rule of niht (c = .01, kappa = 2 / .99), where losses are not quadratic with a test of their values."""
    theta, small = state.theta, 0.01
    empty = ~state.support.any(-1)
    _, start = project(gradient, k)
    support = torch.where(empty[:, None], start, state.support)
    restricted = gradient * support
    curvature = _curvature_along(view, theta, restricted)
    bound = _curvature_along(view, theta, gradient)
    curvature = torch.where(curvature > 0, curvature, bound)  # no gradient on the support, or no curvature along it
    step = torch.where(curvature > 0, shrink / curvature.clamp(min=_tiny(theta)), 1.0)
    loss = view.loss(theta)
    for _ in range(TRIES):
        new, mask = project(theta - step[:, None] * gradient, k)
        rise = _curvature_along(view, theta, new - theta)
        same = (mask == support).all(-1)
        good = step * rise <= 1 - small
        if view.objective.quadratic:
            good |= same
        else:  # the Hessian at theta says nothing of far away; 2 - c still lowers the loss
            lowers = step * _model_rise(view, state, gradient, loss, new) <= 2 - small
            good = (good | same) & lowers
        if bool(good.all()):
            break
        step = torch.where(good, step, torch.minimum(step / 2, (1 - small) / rise.clamp(min=_tiny(theta))))
    return new, mask


def _backtracking(view: View, state: State, gradient: Tensor, k: int, shrink: float) -> tuple[Tensor, Tensor]:
    """Steps 1/L with an L, halved or doubled as needed, for which the quadratic with curvature L lies above."""
    theta, loss = state.theta, view.loss(state.theta)
    if state.smoothness is None:
        state.smoothness = _curvature_along(view, theta, gradient).abs().clamp(min=1e-12)
    bound = state.smoothness / 2
    for _ in range(2 * TRIES):
        new, mask = project(theta - shrink * gradient / bound[:, None], k)
        bad = ~(_model_rise(view, state, gradient, loss, new) <= bound)
        if not bool(bad.any()):
            break
        bound = torch.where(bad, bound * 2, bound)
    state.smoothness = bound
    return new, mask


def refit(view: View, theta: Tensor, support: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """The minimizer on a support of k places each, from theta, by Newton steps with halving."""
    k = int(support[0].sum())
    index = support.nonzero()[:, 1].view(len(support), k)
    if k == 0:
        return theta, support
    loss, asked = view.loss(theta), state.damping
    for _ in range(2 if view.objective.quadratic else 50):
        gradient = view.gradient(theta).gather(1, index)
        curvature = Dense(view.hessian_on(theta, index), REFIT_DAMPING)
        curvature.factor(asked)
        note(state, curvature, asked)
        move = curvature.solve(gradient)
        expected = (move * gradient.to(move.dtype)).sum(-1).to(loss.dtype)
        length = torch.ones_like(loss)
        for _ in range(TRIES):
            entries = theta.gather(1, index).to(move.dtype) - length[:, None].to(move.dtype) * move
            new, _ = spread(entries, index, theta)
            value = view.loss(new)
            bad = ~(value <= loss - 1e-4 * length * expected + state.slack())
            if not bool(bad.any()):
                break
            length = torch.where(bad, length / 2, length)
        keep = bad if bool(bad.any()) else torch.zeros_like(bad)
        theta, loss = torch.where(keep[:, None], theta, new), torch.where(keep, loss, value)
        if bool((keep | (expected <= state.slack())).all()):
            break
    return theta, support


def note(state: State, curvature: Curvature, asked: Tensor) -> None:
    """Keep what damping was used, and what singular matrices made of it."""
    state.used = curvature.damping.clone()
    raised = curvature.damping > asked
    state.singular = torch.where(raised, torch.maximum(state.singular, curvature.damping), state.singular)
