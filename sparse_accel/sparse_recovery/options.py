"""What :func:`solve` may be asked for, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from .curvature import KINDS, Curvature
from .models import ModelMean
from .objective import Objective

METHODS = ("iht", "niht", "htp", "topk_iobs", "iobs")


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


def shrinking(iteration: int, options: Options) -> float:
    """Lets the noise of long steps on minibatches die out: 1 in the first epoch, then one over their number."""
    if options.method == "iht" or not options.stochastic:  # iht's steps are short as it is
        return 1.0
    return 1 / (1 + (iteration - 1) // options.batches)


def make_options(problem: Objective, k: int, method: str, step: float | None, refit: bool | None, damping: float | None,
             curvature: str, batch_size: int | None, monotone: bool) -> Options:  # fmt: skip
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k: expected a whole number, got {type(k).__name__}")
    if not 0 <= k <= problem.size:
        raise ValueError(f"k: expected 0 to {problem.size}, got {k}")
    if curvature not in KINDS:
        raise ValueError(f"curvature: expected one of {', '.join(map(repr, KINDS))}, got {curvature!r}")
    newton = method in ("topk_iobs", "iobs")
    if curvature != "hessian" and not newton:
        raise ValueError(f"curvature: expected 'hessian' for method {method!r}, which has no other, got {curvature!r}")
    if curvature == "fisher" and problem.samples is None:
        raise ValueError("curvature: expected a problem with samples for 'fisher', got one without")
    if refit is False and method == "htp":
        raise ValueError("refit: expected True or None for method 'htp', which is 'iht' without, got False")
    if step is not None and not (isinstance(step, (int, float)) and 0 < step < math.inf):
        raise ValueError(f"step: expected a finite number > 0 or None, got {step!r}")
    if damping is None:
        damping = 0.0 if not newton else _default_damping(curvature, batch_size is not None)
    if not (isinstance(damping, (int, float)) and 0 <= damping < math.inf):
        raise ValueError(f"damping: expected a finite number >= 0 or None, got {damping!r}")
    refit = method in ("htp", "iobs") if refit is None else refit
    batches = 1 if batch_size is None else -(-(problem.samples or 1) // max(1, batch_size))
    return Options(method, k, step, refit, curvature, damping, monotone, batch_size is not None, batches)


def _default_damping(curvature: str, stochastic: bool) -> float:
    if curvature == "fisher":
        return 1.0 if stochastic else 1e-3
    return 1e-2 if stochastic else 0.0


def check_numbers(problem: Objective, iterations: int, ridge: float, curvature_samples: int | None,
                   batch_size: int | None, seed: int) -> None:  # fmt: skip
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations: expected a whole number >= 0, got {iterations!r}")
    if not (isinstance(ridge, (int, float)) and 0 <= ridge < math.inf):
        raise ValueError(f"ridge: expected a finite number >= 0, got {ridge!r}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed: expected a whole number, got {seed!r}")
    for name, value in (("batch_size", batch_size), ("curvature_samples", curvature_samples)):
        if value is None:
            continue
        if problem.samples is None:
            raise ValueError(f"{name}: expected None for a problem without samples, got {value!r}")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= problem.samples:
            raise ValueError(f"{name}: expected 1 to {problem.samples} samples, got {value!r}")
