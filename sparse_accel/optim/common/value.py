"""What the penalties of an optimizer's parameter groups are at the parameters."""

from __future__ import annotations

from typing import Any

import torch

from sparse_accel.groups.coupled import ENTRY
from sparse_accel.optim._batch import grouping_of
from sparse_accel.penalties import penalty_from_plain
from sparse_accel.sharding import is_sharded

from .coupled import coupled_value
from .spread import spread_value


@torch.no_grad()
def value_of(optimizer: Any, group: dict[str, Any]) -> float:
    """The penalty of one parameter group (synchronizes with the device).

    Args:
        optimizer: of this package.
        group: of it.
    """
    if group[ENTRY] is not None:
        if any(map(is_sharded, group["params"])):
            return spread_value(group, optimizer._couplings.spread(group))
        return coupled_value(group, optimizer._couplings)
    total = 0.0
    penalty = penalty_from_plain(group["penalty"])
    for param in dict.fromkeys(group["params"]) if penalty else ():
        if penalty is not None and not param.is_complex():
            grouping = grouping_of(group, penalty.by)
            scale = optimizer.state.get(param, {}).get("penalty_scale", 1.0)
            total += float(penalty.scaled(scale).value(param, grouping))
    return total
