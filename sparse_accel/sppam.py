"""Laws of the stochastic proximal point method with momentum on quadratics.

On an eigenvalue of the Hessian the iteration is ``(1 + s) x' = (1 + beta) x - beta x_prev``, ``s = lr * eigenvalue``.
Source: Kim, Toulis and Kyrillidis, L4DC 2022 (arXiv 2111.06171).
"""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor

__all__ = ["convergence_rate", "is_stable", "optimal_momentum"]


def optimal_momentum(lr: float, strong_convexity: float) -> float:
    """The momentum of the fastest rate, ``(sqrt(1 + s) - sqrt(s))^2`` with ``s = lr * strong_convexity``.

    The rate is then ``1 - sqrt(s / (1 + s))`` for each step, against ``1 - s / (1 + s)`` without momentum.

    Args:
        lr: step size, > 0.
        strong_convexity: the smallest eigenvalue of the Hessian, > 0.

    Raises:
        ValueError: a number is not positive.

    Example:
        >>> round(optimal_momentum(1.0, 1.0), 4)
        0.1716
    """
    for name, value in (("lr", lr), ("strong_convexity", strong_convexity)):
        if not value > 0:
            raise ValueError(f"{name}: expected a number > 0, got {value!r}")
    s = lr * strong_convexity
    return float(((1 + s) ** 0.5 + s**0.5) ** -2)  # the difference of roots, without cancellation


@overload
def is_stable(lr: float, momentum: float, eigenvalue: float) -> bool: ...
@overload
def is_stable(lr: Tensor | float, momentum: Tensor | float, eigenvalue: Tensor | float) -> Tensor | bool: ...
def is_stable(lr: Any, momentum: Any, eigenvalue: Any) -> Any:
    """Whether the iteration converges on an eigenvalue: for step sizes > 0 and momentum >= 0 on a positive eigenvalue,
    ``momentum < 1 + lr * eigenvalue``; for all other numbers whether both roots are inside the unit circle.

    Args:
        lr: step size; it and the others may be tensors, which are broadcast.
        momentum: beta.
        eigenvalue: of the Hessian.

    Returns:
        bool, or a tensor of bool.

    Example:
        >>> is_stable(1.0, 1.5, 1.0), is_stable(1.0, 2.5, 1.0)
        (True, False)
    """
    d = 1 + lr * eigenvalue
    size = abs(d)
    stable = (abs(momentum) < size) & (abs(1 + momentum) * size < d * d + momentum * d)
    return stable if isinstance(stable, Tensor) else bool(stable)


def convergence_rate(lr: float, momentum: float, eigenvalue: float) -> float:
    """The factor by which one step shrinks the error on an eigenvalue in the long run; infinite where
    ``1 + lr * eigenvalue`` is 0.

    Example:
        >>> convergence_rate(1.0, 0.0, 1.0)
        0.5
    """
    d = 1 + lr * eigenvalue
    if d == 0:
        return float("inf")
    matrix = torch.tensor([[(1 + momentum) / d, -momentum / d], [1.0, 0.0]], dtype=torch.float64, device="cpu")
    return float(torch.linalg.eigvals(matrix).abs().max())
