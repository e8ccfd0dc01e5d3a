"""One iteration of each method, on a batch of problems.

Sources: iht, Blumensath and Davies, "Iterative hard thresholding for compressed sensing", 2009; niht, Blumensath and
Davies, "Normalized iterative hard thresholding", 2010; htp, Foucart, "Hard thresholding pursuit", 2011; topk_iobs and
iobs, Wu et al., "The iterative optimal brain surgeon", NeurIPS 2024 (arXiv 2408.17163).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparse_accel.topk import topk_threshold_

from .curvature import REFIT_DAMPING, Curvature, Dense, build, statistic
from .elimination import largest
from .objective import View

BANK = 512  # gradients that Fisher curvature of minibatches is made of, those of an epoch at most
_TRIES = 30  # of a step length or a damping in one iteration


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


@dataclass
class Options:
    """What :func:`solve` was asked for."""

    method: str
    k: int
    step: float | None
    refit: bool
    curvature: str
    damping: float
    monotone: bool
    stochastic: bool
    batches: int = 1  # of an epoch
    model: ModelMean | None = field(default=None, repr=False)
    recent: list[Tensor] = field(default_factory=list, repr=False)  # gradients of the last minibatches' samples
    curvature_cache: Curvature | None = field(default=None, repr=False)


def project(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k entries of largest magnitude of ``[B, d]``, and where they are; ties to the lowest index."""
    theta, infinite = _finite(values)
    mask = topk_threshold_(theta, None, k, by="row")
    return theta.masked_fill(infinite, torch.nan), mask


def _finite(values: Tensor) -> tuple[Tensor, Tensor]:
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
    for _ in range(_TRIES):
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
    for _ in range(2 * _TRIES):
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
        _note(state, curvature, asked)
        move = curvature.solve(gradient)
        expected = (move * gradient.to(move.dtype)).sum(-1).to(loss.dtype)
        length = torch.ones_like(loss)
        for _ in range(_TRIES):
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


def _note(state: State, curvature: Curvature, asked: Tensor) -> None:
    """Keep what damping was used, and what singular matrices made of it."""
    state.used = curvature.damping.clone()
    raised = curvature.damping > asked
    state.singular = torch.where(raised, torch.maximum(state.singular, curvature.damping), state.singular)


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
    for _ in range(_TRIES):
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
    _note(state, curvature, damping)
    step = 1.0 if options.step is None else options.step
    v, infinite = _finite(theta.double() - step * curvature.solve(gradient))
    index = largest(v.abs(), options.k) if options.method == "topk_iobs" else curvature.choose(v, options.k)
    new, mask = spread(curvature.refit(v, index) if options.refit else v.gather(1, index), index, theta)
    return new.masked_fill(infinite, torch.nan), mask


@dataclass
class ModelMean:
    """The weighted mean of the quadratic models that minibatches gave: ``u^T H u / 2 - c.u``.

    On quadratics every batch weighs its rows, so that after an epoch the model is that of all rows; elsewhere old
    models, taken at other points, fade like ``1 / t^4`` (the mean with polynomial decay of degree 3).
    """

    fading: int
    matrix: Tensor | None = None  # [B, d, d], or [B, d] of a diagonal
    linear: Tensor | None = None  # [B, d]
    rows: int = 0

    def update(self, matrix: Tensor, theta: Tensor, gradient: Tensor, rows: int) -> None:
        linear = self._times(matrix, theta.double()) - gradient.double()
        self.rows += rows
        weight = min(1.0, (self.fading + 1) * rows / (self.rows + self.fading * rows))
        if self.matrix is None or self.linear is None:
            self.matrix, self.linear = matrix.clone(), linear
        else:
            self.matrix = torch.lerp(self.matrix, matrix, weight)
            self.linear = torch.lerp(self.linear, linear, weight)

    def gradient(self, theta: Tensor) -> Tensor:
        assert self.matrix is not None
        assert self.linear is not None
        return self._times(self.matrix, theta.double()) - self.linear

    @staticmethod
    def _times(matrix: Tensor, theta: Tensor) -> Tensor:
        return matrix * theta if matrix.dim() == 2 else (matrix @ theta[..., None])[..., 0]


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
    for _ in range(_TRIES):
        bad = ~(view.loss(new) <= loss + loss.abs() + state.slack())
        if not bool(bad.any()):
            break
        damping = torch.where(bad, torch.maximum(damping, state.used) * 10, damping)
        tried, places = _surgeon(curvature, theta, gradient, damping, state, options)
        new, mask = torch.where(bad[:, None], tried, new), torch.where(bad[:, None], places, mask)
    return new, mask


def shrinking(iteration: int, options: Options) -> float:
    """Lets the noise of long steps on minibatches die out: 1 in the first epoch, then one over their number."""
    if options.method == "iht" or not options.stochastic:  # iht's steps are short as it is
        return 1.0
    return 1 / (1 + (iteration - 1) // options.batches)
