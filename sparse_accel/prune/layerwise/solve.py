"""Sparse weights for one linear layer that keep its output: ``min_W tr((W - W0) H (W - W0)^T)``, ``H = X X^T``.

:func:`layerwise_solve` finds support and values. Its own method is curvature IHT (after I-OBS, Wu et al., "The
iterative optimal brain surgeon", NeurIPS 2024); the best-known others are there to compare with.
"""

from __future__ import annotations

import dataclasses
import time
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_accel._modes import outside_inference_mode
from sparse_accel.prune.layerwise.baselines import admm, magnitude, sparsegpt
from sparse_accel.prune.layerwise.groups import whole_columns, whole_rows
from sparse_accel.prune.layerwise.iht import curvature_iht
from sparse_accel.prune.layerwise.obs import obs
from sparse_accel.prune.layerwise.problem import LayerProblem, check, conjugate_gradients
from sparse_accel.prune.layerwise.taps import into_order, out_of_order
from sparse_accel.prune.layerwise.targets import BlockSparsity, GroupSparsity, Projection, Rows, Sparsity, parse

__all__ = ["BlockSparsity", "GroupSparsity", "LayerInfo", "Rows", "layerwise_solve"]


class _Method(NamedTuple):
    damping: float
    refit: int  # steps of the refit
    least: float  # it ends with the step that takes less than this share off the error, less of it in wide layers


# where the caller does not say
DEFAULTS: dict[str, _Method] = {
    "iht": _Method(1e-3, 10, 2e-3),
    "magnitude": _Method(1e-3, 0, 0.0),
    "sparsegpt": _Method(1e-2, 0, 0.0),
    "obs": _Method(1e-3, 0, 0.0),
    "admm": _Method(1e-3, 10, 0.0),
}


# Fewer iterations than these, or as few columns, may end on a support worse than that of the largest weights, which is
# then looked at, too.
UNSETTLED, SMALL = 10, 64


@dataclasses.dataclass(frozen=True)
class LayerInfo:
    """How a layer was solved.

    Attributes:
        method: as asked for.
        error: ``tr((W - W0) H (W - W0)^T) / tr(W0 H W0^T)`` of the weight returned, H as given, in float64.
        seconds: that it took, without the error.
        damping: what was added to the diagonal of H, over the mean of that diagonal.
        damping_asked: what it began with; less than ``damping`` where H turned out indefinite.
        iterations: that were run.
        refit: steps of conjugate gradients on the support.
        kept: number of weights in the support.
        sparsity: share of the weights removed.
        dead_inputs: number of inputs that are always zero (zero diagonal). Their weights go first; those kept stay as
            they were. Where all are, the largest weights are kept.
    """

    method: str
    error: float
    seconds: float
    damping: float
    damping_asked: float
    iterations: int
    refit: int
    kept: int
    sparsity: float
    dead_inputs: int


@outside_inference_mode
def layerwise_solve(
    weight: Tensor,
    hessian: Tensor,
    sparsity: Sparsity = 0.5,
    iterations: int = 20,
    *,
    method: str = "iht",
    damping: float | None = None,
    refit: int | None = None,
    shape: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Tensor:
    """A sparse weight whose outputs are close to the dense one's.

    Args:
        weight: ``[R, C]``, one row per output (a convolution's as ``weight.flatten(1)``); float16, bfloat16, float32 or
            float64. Not changed.
        hessian: ``X X^T`` of the inputs, ``[C, C]``, as a sum or a mean.
        sparsity: the share of weights to remove, ``"n:m"`` (n kept of every m neighbours of a row; a last run shorter
            than m keeps n, or all that it has; with the ``shape`` of a convolution neighbours are input channels at
            one tap, see :class:`BlockSparsity` for the other order), :class:`Rows` or :class:`GroupSparsity`.
        iterations: of ``"iht"``, at most; 32 is better by about 1 %. Not of groups of whole columns (input channels:
            backward elimination, :func:`~sparse_accel.prune.gram_obs`) and of whole rows (outputs: exact at once).
        method: ``"iht"``, or for comparison ``"magnitude"``, ``"sparsegpt"``, ``"obs"`` (greedy, one weight of each row
            at a time, exact refit; for layers of some hundred inputs), ``"admm"`` (ALPS, its own schedule).
        damping: added to the diagonal of H, times its mean; the method's own if None. Ten times more and so on while H
            is not positive definite: logged, and told in ``info``.
        refit: steps of conjugate gradients on the support in the end; the method's own if None.
        shape: ``(R, in, ...)`` of the convolution weight that ``weight`` is a view of, for groups and n:m; ``[R, C]``
            if None.
        seed: for methods that draw numbers; none does at present: the result is a function of the other arguments.

    Returns:
        ``[R, C]`` like ``weight``, with exactly the number of weights kept that was asked for, and an attribute
        ``info``, a :class:`LayerInfo`. Solved in float32 (float64 for float64 weights).

    Raises:
        ValueError: shapes, numbers or targets that do not fit, NaN or inf, a Hessian that is not positive semidefinite.
        TypeError: arguments that are no tensors.

    Example:
        >>> inputs = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
        >>> dense = torch.arange(12.0).view(2, 6)
        >>> sparse = layerwise_solve(dense, inputs @ inputs.T, "2:3")
        >>> (sparse != 0).sum(1).tolist(), sparse.info.kept, sparse.info.error < 0.5
        ([4, 4], 8, True)
    """
    if method not in DEFAULTS:
        raise ValueError(f"method: expected one of {', '.join(map(repr, DEFAULTS))}, got {method!r}")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations: expected a positive integer, got {iterations!r}")
    if refit is not None and (isinstance(refit, bool) or not isinstance(refit, int) or refit < 0):
        raise ValueError(f"refit: expected an integer >= 0, got {refit!r}")
    asked = DEFAULTS[method].damping if damping is None else damping
    begin = time.perf_counter()
    device = weight.device.type if isinstance(weight, Tensor) else "cpu"
    with torch.no_grad(), torch.autocast(device, enabled=False):  # the caller's is for the model, not for the algebra
        check(weight, hessian, asked)
        rows, columns = weight.shape
        target = parse(sparsity, (rows, columns), shape)
        given, order = weight, target.order
        if order is not None:
            given, hessian = into_order(weight.detach(), order, (1,)), into_order(hessian.detach(), order, (0, 1))
        problem = LayerProblem(given, hessian, asked)
        solution, run, steps = _solve(problem, target, method, iterations, refit)
        if weight.is_cuda:
            torch.cuda.synchronize(weight.device)
        seconds = time.perf_counter() - begin
        info = LayerInfo(
            method=method,
            error=problem.error(solution),  # fillers add nothing
            seconds=seconds,
            damping=problem.damping,
            damping_asked=float(asked),
            iterations=run,
            refit=steps,
            kept=target.kept,
            sparsity=1.0 - target.density,
            dead_inputs=problem.dead - (0 if order is None else int((order < 0).sum())),
        )
        if order is not None:
            solution = out_of_order(solution, order, columns)
    solution.info = info  # type: ignore[attr-defined]
    return solution


def _solve(
    problem: LayerProblem, target: Projection, method: str, iterations: int, refit: int | None
) -> tuple[Tensor, int, int]:
    """The solution, and how many iterations and steps of the refit were run."""
    if target.kept == problem.weight.numel():
        return problem.original.clone(), 0, 0
    if target.kept == 0:
        return torch.zeros_like(problem.original), 0, 0
    run = 1
    if problem.dead == problem.weight.shape[1]:  # no inputs to tell one weight from another
        return problem.solution(magnitude(problem, target)[0]), 0, 0
    if method == "iht" and target.by in ("input", "output"):
        scaled, mask = (whole_columns if target.by == "input" else whole_rows)(problem, target)
        refit = refit or 0
    elif method == "iht":
        scaled, mask, run = curvature_iht(problem, target, iterations)
    elif method == "admm":
        scaled, mask, run = admm(problem, target)
    else:
        scaled, mask = {"magnitude": magnitude, "sparsegpt": sparsegpt, "obs": obs}[method](problem, target)
    steps, least = (DEFAULTS[method].refit, DEFAULTS[method].least) if refit is None else (refit, 0.0)
    rows, columns = mask.shape
    least *= min(1.0, rows / columns) ** 0.5  # beside the inverses of a wide layer, a step costs little
    found = _refit(problem, mask, scaled, steps, least)
    if method == "iht" and target.by == "element" and (iterations < UNSETTLED or columns <= SMALL):
        scaled, mask = magnitude(problem, target)
        plain = _refit(problem, mask, scaled, steps, least)
        found = min(found, plain, key=lambda pair: _lost(problem, pair[0]))
    scaled, steps = found
    return problem.solution(scaled), run, steps


def _refit(problem: LayerProblem, mask: Tensor, start: Tensor, steps: int, least: float) -> tuple[Tensor, int]:
    return conjugate_gradients(problem.weight, mask, problem.hessian, steps, start, least) if steps else (start, 0)


def _lost(problem: LayerProblem, solution: Tensor) -> float:
    change = problem.weight - solution
    return float((change @ problem.hessian).mul_(change).sum())
