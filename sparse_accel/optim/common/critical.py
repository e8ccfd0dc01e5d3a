"""At which strength of its penalty each group becomes zero."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from sparse_accel import ops
from sparse_accel.groups.coupled import ENTRY
from sparse_accel.optim._batch import Batch, grouping_of
from sparse_accel.penalties import penalty_from_plain
from sparse_accel.sharding import all_parts, all_sums, is_sharded

from .coupled import Packed
from .spread import unit_norms
from .target import CLOCK, COSTS, Critical, target_key, weight_of


def penalized(group: dict[str, Any]) -> list[Tensor]:
    """The parameters that the group's penalty is about."""
    penalty = penalty_from_plain(group["penalty"])
    grouping = grouping_of(group, penalty.by) if penalty else None
    coupled = group[ENTRY] is not None
    return [param for param in dict.fromkeys(group["params"]) if grouping and (coupled or grouping.applies_to(param))]


def _about(optimizer: Any, group: dict[str, Any], batch: Batch) -> list[tuple[int, float, float]]:
    """The tensors of a batch that the group's penalty is about: index, multiplications by an element, and by what the
    strength is multiplied there."""
    if isinstance(batch, Packed):
        costs = group.get(COSTS)
        return [(i, batch.cost(i, costs), factor) for i, factor in enumerate(batch.factors) if factor]
    concerned = set(penalized(group))
    by_param = dict(zip(group["params"], group.get(COSTS) or [1.0] * len(group["params"]), strict=True))
    return [
        (i, by_param[param], optimizer.state.get(param, {}).get("penalty_scale", 1.0))
        for i, param in enumerate(batch.params)
        if param in concerned
    ]


def critical_strengths(optimizer: Any, group: dict[str, Any], at_zero: bool = False) -> list[Critical]:
    """The critical strengths of a parameter group's groups, as far as they have been stepped.

    Args:
        optimizer: of this package.
        group: one of its parameter groups.
        at_zero: of weights that are zero, by their gradients, instead.
    """
    found = []
    for batch in (one.copy() for one in optimizer._gather(group, need_grad=at_zero)):
        if at_zero:
            points = [torch.empty_like(w).copy_(grad) for w, grad in zip(batch.work, batch.grads, strict=True)]
            scales = [torch.ones((), device=work.device) for work in batch.work]
        else:
            points, scales = optimizer._before_prox(group, batch)
        if batch.joins is not None:
            for width, index, own, cost in unit_norms(batch, points, "l2", group.get(COSTS)):
                strengths = own.to(scales[index]) / (scales[index] * width.size**0.5)
                found.append(Critical(strengths, width.size, cost))
            continue
        norms, sizes = _norms(group, batch, points)
        for index, cost, factor in _about(optimizer, group, batch):
            size, scale = sizes[index], scales[index]
            found.append(Critical(norms[index].to(scale) / (scale * (size**0.5 * factor)), size, cost))
    return found


def _norms(
    group: dict[str, Any], batch: Any, points: Sequence[Tensor], kind: str = "l2"
) -> tuple[list[Tensor], list[int]]:
    """The norms (or largest magnitudes, ``"amax"``) of all groups of a batch's tensors, also of those on other
    processes, and the groups' sizes."""
    if batch.processes:
        squares = all_sums(ops.group_score(points, batch.layouts, "l2sq"), batch.processes)
        norms, sizes = [square.sqrt() for square in squares], list(batch.sizes)
    else:
        norms = ops.group_score(points, batch.layouts, kind)
        sizes = [layout.group_size for layout in batch.layouts]
    if any(map(is_sharded, batch.params)):
        penalty = penalty_from_plain(group["penalty"])
        for i, param in enumerate(batch.params):
            grouping = grouping_of(group, penalty.by if penalty else "element")
            if grouping.applies_to(param):
                norms[i] = all_parts(norms[i], param, grouping.group_dims(param.dim()))
    return norms, sizes


def _tops(optimizer: Any, group: dict[str, Any], batch: Any) -> list[tuple[Tensor, int, float]]:
    """The largest magnitudes of all groups, tensor by tensor or width by width, with their sizes and costs."""
    if batch.joins is not None:
        found = unit_norms(batch, batch.work, "amax", group.get(COSTS))
        return [(own, width.size, cost) for width, _, own, cost in found]
    scores, sizes = _norms(group, batch, batch.work, "amax")
    return [(scores[index], sizes[index], cost) for index, cost, _ in _about(optimizer, group, batch)]


def warn_of_missed_targets(optimizer: Any) -> None:
    """Warn of every target that the weights, as they are, miss by more than a point and two groups."""
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for group in optimizer.param_groups:
        key = target_key(group)
        if key is not None:
            alike.setdefault(key, []).append(group)
    for (_, target, of, ramp), together in alike.items():
        zero = total = largest = 0.0
        for group in together:
            for batch in (one.copy() for one in optimizer._gather(group, need_grad=False)):
                for score, size, cost in _tops(optimizer, group, batch):
                    if score.numel():
                        each = weight_of(of, size, cost)
                        zero += each * int((score == 0).sum())
                        total += each * score.numel()
                        largest = max(largest, each)
        if total and abs(zero / total - target) > max(0.01, 2 * largest / total):
            steps = max(group[CLOCK] for group in together)
            warnings.warn(
                f"GroupLasso(target={target:g}, of={of!r}): {100 * zero / total:.1f} % are zero after {steps} steps "
                f"(ramp={ramp}): train for several times the ramp, or see what the strength was in param_groups",
                stacklevel=3,
            )


def max_strength(optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> float:
    """The least strength of the penalties at which every group is zero: from there on there is nothing to learn.

    Args:
        optimizer: of this package, with group lasso or L1 penalties, whatever their strength.
        closure: computes the loss and its gradients (clearing those before). With it the answer is about the weights at
            zero: the largest ``||gradient_g|| / sqrt(|g|)`` there, with the parameters that are not penalized as they
            are. For linear models that is the end of the regularization path; in a deep network all inner gradients
            vanish with the weights. Without it the answer is about the training so far: the strength at which the
            proximal step of this moment (RMDA, RAMDA: the proximal iterate) is zero throughout.

    Returns:
        The strength; choose a fraction of it. Parameters, gradients and state are as before.

    Raises:
        TypeError: the optimizer is none that has critical strengths.
        ValueError: it has no such penalty; or, without a closure, it has not taken a step; or, with one, its groups
            are coupled, and all gradients vanish with the weights.

    Example:
        >>> import sparse_accel as sa
        >>> weight = torch.nn.Parameter(torch.ones(1, 2))
        >>> opt = sa.RMDA([weight], penalty=sa.L1(0.0))
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (weight * torch.tensor([[3.0, -4.0]])).sum()
        ...     loss.backward()
        >>> max_strength(opt, closure)
        4.0
    """
    inner: Any = optimizer
    while isinstance(getattr(inner, "optimizer", None), Optimizer):
        inner = inner.optimizer
    if not hasattr(inner, "_before_prox"):
        raise TypeError(f"optimizer: expected one of this package, got {type(optimizer).__name__}")
    groups = [group for group in inner.param_groups if group["penalty"] is not None]
    if not groups or any(getattr(penalty_from_plain(g["penalty"]), "prox_name", "") != "soft" for g in groups):
        raise ValueError("optimizer: expected penalties GroupLasso or L1, for one parameter group at least")
    if closure is not None and any(group[ENTRY] is not None for group in groups):
        raise ValueError("closure: the gradients of coupled groups vanish at zero: take some steps, and leave it out")
    with torch.no_grad():
        if closure is None:
            found = [one for group in groups for one in critical_strengths(inner, group)]
        else:
            found = _at_zero(inner, groups, closure)
        largest = [one.strengths.amax().cpu() for one in found if one.strengths.numel()]
    if not largest:
        raise ValueError("optimizer: expected penalized parameters with a gradient (without a closure: after a step)")
    return float(torch.stack(largest).amax())


def _at_zero(optimizer: Any, groups: Sequence[dict[str, Any]], closure: Callable[[], Any]) -> list[Critical]:
    """The critical strengths of weights that are zero: the norms of their gradients."""
    parameters = [param for group in optimizer.param_groups for param in dict.fromkeys(group["params"])]
    grads = [param.grad for param in parameters]
    kept = [None if grad is None else grad.clone() for grad in grads]
    weights = {param: param.detach().clone() for group in groups for param in penalized(group)}
    try:
        for param in weights:
            param.zero_()
        with torch.enable_grad():
            closure()
        return [one for group in groups for one in critical_strengths(optimizer, group, at_zero=True)]
    finally:
        for param, value in weights.items():
            param.copy_(value)
        for param, grad, saved in zip(parameters, grads, kept, strict=True):
            param.grad = None if grad is None or saved is None else grad.copy_(saved)
