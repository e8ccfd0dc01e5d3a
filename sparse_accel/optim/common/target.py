"""Strengths that are found while training: ``GroupLasso(target=0.6)``.

The state of an optimizer tells, for every group, the *critical strength*: the least one at which the next proximal step
(RMDA and RAMDA: the proximal iterate of this one) sets the group to zero. Between the k-th and the next of them, in
order, lie the strengths at which k groups are zero. At some of the steps (:func:`is_due`) the strength moves into that
interval, for the k that the schedule wants by then (:func:`scheduled_share`): at once where dual averages make groups
come and go with it, by a bounded factor where a group takes many steps to shrink (:func:`eased`).

All that takes part is in the state: the clock, the strength, the numbers of the penalty. A resumed run goes on with the
same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_accel.penalties import Penalty

CLOCK = "target_step"  # entry of a parameter group: steps taken under a target
COSTS = "costs"  # entry of a parameter group: multiplications by one weight of each parameter, in a forward pass
_INTERVAL = 10  # steps between two looks at the groups, after the first hundred
_KEPT = 50  # one in so many of the groups of each weight stays
_GAIN = 4.0  # of the logarithm of the strength, by the share that is missing
RATE = 1.2
SLOW_RATE = 1.05
_MARGIN = 1e-3  # how far into the interval, relative


class Critical(NamedTuple):
    """The groups of one tensor."""

    strengths: Tensor  # [groups], least strength at which each is zero
    size: int  # elements of each
    cost: float  # of each element


def is_due(step: int) -> bool:
    """Whether the strength is adjusted after this step (from 1): always up to the 20th, then ever more seldom, from the
    100th on after every tenth. Only then the host waits for the device.

    Example:
        >>> [step for step in range(1, 131) if is_due(step)][18:]
        [19, 20, 22, 24, 26, 28, 30, 33, 36, 39, 40, 44, 48, 50, 55, 60, 66, 70, 77, 80, 88, 90, 99, 100, 110, 120, 130]
    """
    return step % min(max(step // 10, 1), _INTERVAL) == 0


def scheduled_share(target: float, ramp: int, step: int) -> float:
    """The share that is to be zero after a step: ``target * x^2 * (3 - 2 x)`` with ``x = min(step / ramp, 1)``. It
    begins slowly, because the weights at the start say little about the groups.

    Example:
        >>> scheduled_share(0.8, 100, 50), scheduled_share(0.8, 100, 200)
        (0.4, 0.8)
    """
    x = min(step / ramp, 1.0) if ramp else 1.0
    return target * x * x * (3 - 2 * x)


def target_key(group: dict[str, Any]) -> tuple[Any, ...] | None:
    """By, target, of and ramp of a parameter group's penalty; groups that have the same share the target. None: no
    target."""
    penalty = group["penalty"]
    plain = penalty.to_plain() if isinstance(penalty, Penalty) else penalty
    if plain is None or plain.get("target") is None:
        return None
    return plain["by"], plain["target"], plain["of"], plain["ramp"]


def weight_of(of: str, size: int, cost: float) -> float:
    """What one group of so many elements counts, whose elements cost so many multiplications each."""
    return {"groups": 1.0, "params": float(size), "flops": size * cost}[of]


def bracket(found: Sequence[Critical], strength: float, share: float, of: str) -> tuple[float, float, float]:
    """The strengths at which, to the nearest, a share is zero: from the first (a group is zero at its critical
    strength) to below the second; and the share that is zero now. The only look at the device.

    No strength empties a weight: of each a fiftieth of the groups, and one at least, stays, even at a share too small.

    Args:
        found: of all tensors.
        strength: of the penalty now.
        share: wanted, in [0, 1].
        of: what it is a share of: ``"groups"``, ``"params"`` or ``"flops"``.
    """
    device = found[0].strengths.device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    values = torch.cat([one.strengths.to(device, dtype) for one in found])
    weights = torch.cat(
        [torch.full_like(one.strengths, weight_of(of, one.size, one.cost), dtype=dtype, device=device) for one in found]
    )
    kept = [one.strengths.topk(max(1, one.strengths.numel() // _KEPT)).values[-1] for one in found]
    most = torch.stack([one.to(device, dtype) for one in kept])
    most = torch.where(most > 0, most, math.inf).amin()
    values, order = values.sort()
    sums = torch.cat([weights.new_zeros(1), weights[order].cumsum(0)])
    count = (sums - share * sums[-1]).abs().argmin()
    count = torch.minimum(count, torch.searchsorted(values, most))
    padded = torch.cat([values.new_zeros(1), values, values.new_full((1,), math.inf)])
    now = sums[torch.searchsorted(values, strength, right=True)] / sums[-1]
    low, high, zero = torch.cat([padded[torch.stack([count, count + 1])], now.reshape(1)]).tolist()
    return low, high, zero


def moved(strength: float, low: float, high: float) -> float:
    """The strength nearest to this one in ``[low, high)``, a little off its ends; ``high`` may be infinite."""
    middle = (low + high) / 2
    if strength < low or (strength == low and low > 0):
        return min(low * (1 + _MARGIN), middle)
    return max(high * (1 - _MARGIN), middle) if strength >= high else strength


def eased(strength: float, wanted: float, low: float, missing: float, ramp: int) -> float:
    """A strength on its way to another, where groups shrink step by step and the share answers late.

    It changes by ``exp(4 * missing)``: as much upwards as downwards, so that noise in the groups pulls it nowhere.
    Upwards by ``RATE`` at most, and beyond ``low / ramp`` (which sets the groups that are to go to zero in ``ramp``
    steps, if nothing opposes) by ``SLOW_RATE``.

    Args:
        strength: as it is.
        wanted: where it should be for the share to be right at the next step.
        low: the critical strength of the last group that is to be zero.
        missing: the share that is yet to become zero; negative: too much is.
        ramp: steps in which groups are to vanish.
    """
    factor = math.exp(_GAIN * missing)
    if wanted <= strength:
        return max(wanted, strength * min(factor, 1.0))
    fastest = low / max(ramp, 1)
    start = max(strength, fastest / 10)
    return min(wanted, max(min(start * min(factor, RATE), fastest), start * min(factor, SLOW_RATE)))


def follow_targets(
    groups: Sequence[dict[str, Any]], critical: Callable[[dict[str, Any]], list[Critical]], at_once: bool
) -> None:
    """Count a step of every parameter group under a target, and adjust strengths where that is due.

    Groups whose penalties have the same target share one strength, and the target is about them together.

    Args:
        groups: of an optimizer; penalties as plain values.
        critical: of a parameter group.
        at_once: whether groups come and go with the strength; else it is :func:`eased`.
    """
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for group in groups:
        key = target_key(group)
        if key is not None:
            group[CLOCK] += 1
            alike.setdefault(key, []).append(group)
    for (_, target, of, ramp), together in alike.items():
        step = max(group[CLOCK] for group in together)
        if not is_due(step):
            continue
        found = [one for group in together for one in critical(group) if one.strengths.numel()]
        if not found:
            continue
        share = scheduled_share(target, ramp, step)
        strength = max(group["penalty"]["strength"] for group in together)
        low, high, now = bracket(found, strength, share, of)
        if not math.isfinite(low):
            continue  # no step was taken yet, or something is no number
        wanted = moved(strength, low, high)
        strength = wanted if at_once else eased(strength, wanted, low, share - now, ramp)
        for group in together:
            group["penalty"] = {**group["penalty"], "strength": strength}
