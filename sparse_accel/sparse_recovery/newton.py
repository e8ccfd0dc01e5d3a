"""Iterations of I-OBS: the Newton point, its k places, the OBS update."""

from __future__ import annotations

import torch
from torch import Tensor

from .curvature import Curvature, build, statistic
from .elimination import largest
from .models import ModelMean
from .objective import View
from .options import Options, shrinking
from .steps import TRIES, State, finite, note, spread

BANK = 512  # gradients that Fisher curvature of minibatches is made of, those of an epoch at most


def newton_step(view: View, curvature_view: View, state: State, options: Options) -> tuple[Tensor, Tensor]:
    """I-OBS on the rows of ``view``, with curvature from those of ``curvature_view``.

    A step that raises the loss of a k-sparse point is tried again with ten times the damping: towards infinity it is a
    gradient step in the metric of the curvature's diagonal, which lowers the loss.
    """
    theta = state.theta
    curvature = options.curvature_cache
    if curvature is None:
        curvature = build(options.curvature, statistic(options.curvature, curvature_view, theta), view.ridge)
        if view.objective.quadratic and options.curvature != "fisher" and curvature_view.rows is None:
            options.curvature_cache = curvature
    gradient = view.gradient(theta) if state.gradient is None else state.gradient
    guarded = (state.support.sum(-1) <= options.k) & options.monotone
    damping, done = state.damping.clone(), torch.zeros_like(guarded)
    result, mask, used = theta.clone(), state.support.clone(), damping.clone()
    for _ in range(TRIES):
        new, places = _surgeon(curvature, theta, gradient, damping, state, options)
        good = ~guarded | (view.loss(new) <= state.loss + state.slack())
        take = good & ~done
        result, mask = torch.where(take[:, None], new, result), torch.where(take[:, None], places, mask)
        used = torch.where(done, used, state.used)
        done = done | good
        if bool(done.all()):
            break
        damping = torch.where(done, damping, torch.maximum(state.used, damping).clamp(min=1e-7) * 10)
    state.used = used
    state.stalled = state.stalled | ~done
    lower = torch.where(used > 1e-6, used / 10, torch.zeros_like(used))
    state.damping = lower.clamp(min=options.damping)
    return result, mask


def _surgeon(
    curvature: Curvature, theta: Tensor, gradient: Tensor, damping: Tensor, state: State, options: Options
) -> tuple[Tensor, Tensor]:
    """The Newton point, its k places and their values."""
    curvature.factor(damping)
    note(state, curvature, damping)
    step = 1.0 if options.step is None else options.step
    v, infinite = finite(theta.double() - step * curvature.solve(gradient))
    index = largest(v.abs(), options.k) if options.method == "topk_iobs" else curvature.choose(v, options.k)
    new, mask = spread(curvature.refit(v, index) if options.refit else v.gather(1, index), index, theta)
    return new.masked_fill(infinite, torch.nan), mask


def stochastic_newton_step(view: View, curvature_view: View, state: State, options: Options,
                           iteration: int) -> tuple[Tensor, Tensor]:  # fmt: skip
    """I-OBS on the mean of the minibatches' models; with Fisher curvature on the batch, in shrinking steps.

    Where the models depend on where they were taken, a step that more than doubles the loss of its batch is tried again
    with ten times the damping.
    """
    theta = state.theta
    gradient, value = view.gradient(theta), statistic(options.curvature, curvature_view, theta)
    if options.curvature == "fisher":
        options.recent = [*options.recent, value][-options.batches :]
        while sum(part.shape[1] for part in options.recent[1:]) >= BANK:
            options.recent = options.recent[1:]
        curvature = build("fisher", torch.cat(options.recent, 1), view.ridge)
        gradient = gradient * shrinking(iteration, options)
    else:
        if options.model is None:
            options.model = ModelMean(0 if view.objective.quadratic else 3)
        assert view.rows is not None
        options.model.update(value, theta, gradient, len(view.rows))
        assert options.model.matrix is not None
        curvature, gradient = build(options.curvature, options.model.matrix, 0.0), options.model.gradient(theta)
    new, mask = _surgeon(curvature, theta, gradient, state.damping, state, options)
    if view.objective.quadratic and options.curvature == "hessian":
        return new, mask
    loss, damping = view.loss(theta), state.damping
    for _ in range(TRIES):
        bad = ~(view.loss(new) <= loss + loss.abs() + state.slack())
        if not bool(bad.any()):
            break
        damping = torch.where(bad, torch.maximum(damping, state.used) * 10, damping)
        tried, places = _surgeon(curvature, theta, gradient, damping, state, options)
        new, mask = torch.where(bad[:, None], tried, new), torch.where(bad[:, None], places, mask)
    return new, mask
