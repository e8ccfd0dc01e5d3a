"""The loop around the methods: checks, rows, stopping, history."""

from __future__ import annotations

import logging
import time

import torch
from torch import Tensor

from sparse_accel._modes import outside_inference_mode
from sparse_accel.progress import Meter, Show, check_progress, meter

from .elimination import largest
from .newton import newton_step, stochastic_newton_step
from .objective import Objective, View
from .options import Options, check_numbers, make_options, shrinking
from .result import Recorder, Recovery, Stopping, minibatches
from .steps import State, gradient_step, refit, spread

logger = logging.getLogger("sparse_accel")


@outside_inference_mode
def solve(
    problem: Objective,
    k: int,
    method: str = "iobs",
    *,
    initial: Tensor | None = None,
    iterations: int = 100,
    stop: Stopping | None = None,
    step: float | None = None,
    refit: bool | None = None,
    ridge: float = 0.0,
    damping: float | None = None,
    curvature: str = "hessian",
    curvature_samples: int | None = None,
    batch_size: int | None = None,
    monotone: bool = True,
    seed: int = 0,
    progress: Show = None,
) -> Recovery:
    """Minimize a smooth function over vectors with at most k nonzeros.

    ===============  ====================================================================================
    ``"iht"``        ``T_k(theta - eta g)``, eta = 1/L: the loss never rises
    ``"niht"``       the same with the longest step along the support that is sure to lower the loss
    ``"htp"``        the support of an iht step, then the minimizer on it
    ``"topk_iobs"``  the k largest entries of the Newton point ``v = theta - H^-1 g``, the rest zeroed
    ``"iobs"``       the k entries of v that exact greedy elimination by damage leaves, then the OBS update
                     ``v - H^-1[:, Q] ([H^-1]_QQ)^-1 v_Q``: the minimizer of the quadratic model on them
    ===============  ====================================================================================

    On a quadratic function the Newton point is the dense minimizer wherever one stands, so iobs and topk_iobs are done
    after one iteration and the second finds nothing to change. Iterating pays where the curvature changes, is
    damped or is approximate.

    Args:
        problem: :class:`LeastSquares`, :class:`Logistic` or :class:`Problem`.
        k: nonzeros of theta (of each problem in a batch), 0 to d.
        method: see above.
        initial: warm start, of the problem's shape, sparse or dense. None: the problem's own, mostly zero.
        iterations: at most; a minibatch counts as one.
        stop: further rules; None: ``Stopping()``.
        step: eta. None: 1/L (with backtracking where no L is known), or the rule of niht, or 1, a whole Newton step. A
            number is used as it is.
        refit: minimize on the support: the OBS update of topk_iobs (default off) and iobs (default on) in each
            iteration; after the last one for iht and niht (default off). htp always does.
        ridge: adds ``ridge / 2 |theta|^2``.
        damping: adds that part of its diagonal to the curvature, around theta: slows iterations down, but leaves the
            solution where it is once they converge. None: 0; .001 for Fisher curvature; with minibatches .01, for
            Fisher curvature 1.
        curvature: of iobs and topk_iobs: ``"hessian"``, its ``"diagonal"``, or the empirical ``"fisher"`` matrix,
            inverted by Woodbury's identity from the gradients of m samples.
        curvature_samples: take curvature from that many samples, drawn anew in each iteration. None: from all.
        batch_size: minibatches of that many samples, in random order. iht and niht then step on the batch alone
            (niht's eta divided by the number of the epoch); htp refits on all rows; iobs and topk_iobs step on the mean
            of the models that the batches gave, with Fisher curvature (gradients of the last batches, about 512) on the
            batch in shrinking steps. None: all.
        monotone: where a step of iobs or topk_iobs would raise the loss of a k-sparse theta, raise the damping until it
            does not. Not with minibatches.
        seed: of everything random.
        progress: True, False or a function, see :mod:`sparse_accel.progress`: a step is an iteration. Fewer are
            made where a rule ends the run.

    Returns:
        The :class:`Recovery`.

    Raises:
        ValueError: a number out of range, an unknown method or curvature, options that the method does not have.
        TypeError: ``problem`` or ``k`` of another type.
        FloatingPointError: the loss or gradient is not finite at the start, or curvature never is positive definite.

    A singular or indefinite curvature gets damping, in powers of ten from 1e-3 of its diagonal on (1e-10 in refits);
    the result and a warning of the logger ``sparse_accel`` tell how much.

    Source: see :mod:`sparse_accel.sparse_recovery`.

    Example:
        >>> from sparse_accel.sparse_recovery import LeastSquares
        >>> generator = torch.Generator().manual_seed(0)
        >>> A = torch.randn(40, 20, generator=generator)
        >>> truth = torch.zeros(20)
        >>> truth[[3, 5, 17]] = torch.tensor([1.0, -2.0, 0.5])
        >>> solve(LeastSquares(A, A @ truth), 3).support.nonzero().flatten()
        tensor([ 3,  5, 17])
    """
    if not isinstance(problem, Objective):
        raise TypeError(f"problem: expected a LeastSquares, Logistic or Problem, got {type(problem).__name__}")
    check_numbers(problem, iterations, ridge, curvature_samples, batch_size, seed)
    options = make_options(problem, k, method, step, refit, damping, curvature, batch_size, monotone)
    check_progress(progress)
    stop = Stopping() if stop is None else stop
    theta = problem.initial.clone() if initial is None else problem.flatten(initial)
    run = _Run(problem, options, stop, ridge, theta)
    with meter(progress, "solve", iterations) as steps:
        run.loop(iterations, batch_size, curvature_samples, seed, steps)
    return run.result()


class _Run:
    """One call of :func:`solve`."""

    def __init__(self, problem: Objective, options: Options, stop: Stopping, ridge: float, theta: Tensor) -> None:
        self.problem, self.options, self.stop = problem, options, stop
        self.all_rows = View(problem, ridge)
        loss = self.all_rows.loss(theta)
        gradient = self.all_rows.gradient(theta)
        for name, value in (("loss", loss), ("gradient", gradient)):
            if not bool(torch.isfinite(value).all()):
                bad = float(value[~torch.isfinite(value)][0])
                raise FloatingPointError(f"problem: expected a finite {name} at the start, got {bad}")
        zeros = torch.zeros(len(theta), dtype=torch.float64, device=theta.device)
        self.state = State(
            theta, theta != 0, loss, gradient, loss.abs(), zeros + options.damping, zeros.clone(),
            zeros + options.damping, torch.zeros_like(loss, dtype=torch.bool),
        )  # fmt: skip
        self.reasons: list[str | None] = [None] * len(theta)
        self.still = [0] * len(theta)  # looks without a change of the support
        self.iterations = 0
        self.recorder = Recorder(problem.batch_shape)
        self._record(0.0, torch.zeros_like(self.state.stalled, dtype=torch.int64), gradient)

    def loop(
        self, iterations: int, batch_size: int | None, curvature_samples: int | None, seed: int, steps: Meter
    ) -> None:
        """Iterate until every run has a reason to stop."""
        state, options, problem = self.state, self.options, self.problem
        batches = None if batch_size is None else minibatches(problem.samples or 0, batch_size, seed)
        generator = torch.Generator().manual_seed(seed)
        seconds = 0.0
        seen = (state.theta, state.support)
        for iteration in range(1, iterations + 1):
            started = time.perf_counter()
            view = self.all_rows
            if batches is not None:
                view = View(problem, view.ridge, next(batches).to(state.theta.device))
                state.gradient = None
            curved = view
            if curvature_samples is not None:
                pool = torch.arange(problem.samples or 0, device="cpu") if view.rows is None else view.rows.cpu()
                drawn = pool[torch.randperm(len(pool), generator=generator, device="cpu")[:curvature_samples]]
                curved = View(problem, view.ridge, drawn.to(state.theta.device))
            running = torch.tensor([reason is None for reason in self.reasons], device=state.theta.device)
            theta, support = self._step(view, curved, iteration)
            theta = torch.where(running[:, None], theta, state.theta)
            support = torch.where(running[:, None], support, state.support)
            self._reject_infinite(theta, support)
            self.iterations = iteration
            seconds += time.perf_counter() - started
            if iteration % options.batches == 0 or iteration == iterations:
                started = time.perf_counter()
                self._look(*seen, seconds)
                seconds += time.perf_counter() - started
                seen = (state.theta, state.support)
            steps.advance("", float(state.loss.double().mean()) if steps.shown else None)
            if all(reason is not None for reason in self.reasons):
                break
        self.reasons = [reason or "iterations" for reason in self.reasons]
        if options.refit and options.method in ("iht", "niht") and self.iterations:
            self._polish()

    def _step(self, view: View, curved: View, iteration: int) -> tuple[Tensor, Tensor]:
        state, options = self.state, self.options
        if options.k == 0:
            return torch.zeros_like(state.theta), torch.zeros_like(state.support)
        if options.method not in ("topk_iobs", "iobs"):
            if options.method == "htp" and options.stochastic:
                return refit(self.all_rows, *_plain(view, state, options), state)
            return gradient_step(view, state, options, shrinking(iteration, options))
        if options.stochastic:
            return stochastic_newton_step(view, curved, state, options, iteration)
        return newton_step(view, curved, state, options)

    def _reject_infinite(self, theta: Tensor, support: Tensor) -> None:
        """Go on from the new point, but where it is not finite."""
        state = self.state
        good = torch.isfinite(theta).all(-1)
        for run in (~good).nonzero().flatten().tolist():
            self.reasons[run] = self.reasons[run] or "diverged"
        state.theta = torch.where(good[:, None], theta, state.theta)
        state.support = torch.where(good[:, None], support, state.support)

    def _look(self, theta: Tensor, support: Tensor, seconds: float) -> None:
        """The loss on all rows, the record, the stopping rules."""
        state, stop = self.state, self.stop
        last = state.loss
        loss, gradient = self.all_rows.loss(state.theta), self.all_rows.gradient(state.theta)
        good = torch.isfinite(loss) & torch.isfinite(gradient).all(-1)
        for run in (~good).nonzero().flatten().tolist():
            self.reasons[run] = self.reasons[run] or "diverged"
        state.theta = torch.where(good[:, None], state.theta, theta)
        state.support = torch.where(good[:, None], state.support, support)
        state.loss = torch.where(good, loss, last)
        state.gradient = torch.where(good[:, None], gradient, self.all_rows.gradient(theta))
        state.scale = torch.maximum(state.scale, state.loss.abs())
        changes = (state.support & ~support).sum(-1)
        steepest = self._record(seconds, changes, state.gradient)
        length = torch.linalg.vector_norm(state.theta - theta, dim=-1)
        unit = torch.finfo(length.dtype).eps
        limit = (-1.0 if self.options.stochastic else 100 * unit) if stop.step is None else stop.step
        short = length <= limit * torch.linalg.vector_norm(state.theta, dim=-1)
        rules = {
            "stalled": state.stalled,
            "step": short & (limit >= 0),
            "gradient": steepest <= (stop.gradient or -1.0),
            "loss": (last - state.loss).abs() <= (stop.loss or -1.0) * state.loss.abs(),
        }
        held = {name: rule.tolist() for name, rule in rules.items()}
        for run, changed in enumerate(changes.tolist()):
            self.still[run] = 0 if changed else self.still[run] + 1
            if self.reasons[run] is not None:
                continue
            found = [name for name, rule in held.items() if rule[run]]
            if stop.support is not None and self.still[run] >= stop.support:
                found.append("support")
            self.reasons[run] = found[0] if found else None

    def _record(self, seconds: float, changes: Tensor, gradient: Tensor) -> Tensor:
        state = self.state
        steepest = (gradient * state.support).abs().amax(-1)
        self.recorder.add(self.iterations, seconds, state.loss, changes, steepest, state.used)
        return steepest

    def _polish(self) -> None:
        """The final refit of iht and niht."""
        state, started = self.state, time.perf_counter()
        before = state.support
        index = largest(state.support.to(state.theta.dtype), self.options.k)  # a start that never moved may be smaller
        theta, support = spread(state.theta.gather(1, index), index, state.theta)
        state.theta, state.support = refit(self.all_rows, theta, support, state)
        state.loss = self.all_rows.loss(state.theta)
        seconds = float(self.recorder.seconds[-1]) + time.perf_counter() - started
        self._record(seconds, (state.support & ~before).sum(-1), self.all_rows.gradient(state.theta))

    def result(self) -> Recovery:
        """Reshaped, with warnings for what went wrong."""
        problem, state, batch = self.problem, self.state, self.problem.batch_shape
        if bool((state.singular > self.options.damping).any()):
            logger.warning(
                "sparse recovery by %s: singular or indefinite curvature, damping raised from %g to %g of its diagonal",
                self.options.method, self.options.damping, float(state.singular.max()),
            )  # fmt: skip
        diverged = self.reasons.count("diverged")
        if diverged:
            logger.warning("sparse recovery by %s: %d of %d runs diverged at step=%s", self.options.method, diverged,
                           len(self.reasons), self.options.step)  # fmt: skip
        return Recovery(
            state.theta.view(problem.shape), state.support.view(problem.shape), state.loss.view(batch),
            self.iterations, tuple(str(reason) for reason in self.reasons), state.singular.view(batch),
            self.recorder.history(),
        )  # fmt: skip


def _plain(view: View, state: State, options: Options) -> tuple[Tensor, Tensor]:
    """The support of htp's gradient step on a minibatch, without the refit on it."""
    iht = Options("iht", options.k, options.step, False, "hessian", options.damping, True, True)
    return gradient_step(view, state, iht)
