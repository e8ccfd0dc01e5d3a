"""Powers of two that keep products in range: scaling by them is exact, and nothing that is in range gets one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SAFE = 32  # squares of numbers in [2^-32, 2^32], and their sums, are far from both ends of float32
_STEP = 100  # 2^100 is a float32


def power_of(x: Tensor, safe: int = SAFE) -> int:
    """The p for which ``x / 2^p`` can be squared: 0 where x can, or has no largest magnitude (empty, zero, NaN, inf).

    Example:
        >>> power_of(torch.tensor([3.0, 0.0])), power_of(torch.tensor([1e-22, 0.0]))
        (0, -73)
    """
    largest = magnitude(x)
    return 0 if largest is None or abs(largest) <= safe else largest


def magnitude(x: Tensor) -> int | None:
    """The exponent of the largest magnitude, ``2^(e - 1) <= max |x| < 2^e``; None where that is zero, NaN or inf."""
    if not x.numel():
        return None
    least, most = torch.aminmax(x.detach())
    largest = max(-float(least), float(most))
    return math.frexp(largest)[1] if 0 < largest < math.inf else None


def times_power(x: Tensor, power: int) -> Tensor:
    """``x * 2^power``, in the dtype of x, without an intermediate that overflows; x itself if power is 0."""
    while power:
        step = max(-_STEP, min(_STEP, power))
        x = x * 2.0**step
        power -= step
    return x
