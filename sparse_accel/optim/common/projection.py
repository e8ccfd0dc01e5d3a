"""Steps under a constraint, or a penalty that the fused steps do not have: without penalty to the point itself, whose
operator is then taken, and the result mixed with the old weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_accel.optim._batch import grouping_of, state_dtype
from sparse_accel.penalties import Penalty, penalty_from_plain
from sparse_accel.sharding import is_flat, shard_groups

from .stages import Cut, applies, cut_of, run_stages


class Held(NamedTuple):
    """The constraint of a batch of tensors, or the stages of a penalty."""

    penalty: Any
    which: list[int]  # of the batch's tensors
    cuts: list[Cut]  # of these, under a penalty

    def operate(self, optimizer: Any, group: dict[str, Any], batch: Any) -> None:
        """Take the operator of the points that a step without penalty, or the proximal iterate, has left in
        ``batch.work``; the state is that after the step."""
        if self.penalty.projects:
            for index in self.which:
                self.penalty.project_(batch.work[index])
            return
        metrics, taus = optimizer._prox_metric(group, batch)
        run_stages(
            self.cuts,
            [batch.work[index] for index in self.which],
            [taus[index] for index in self.which],
            None if metrics is None else [metrics[index] for index in self.which],
        )


class Operator(NamedTuple):
    """A penalty of stages on one tensor, without a metric."""

    penalty: Penalty
    cut: Cut

    @classmethod
    def of(cls, optimizer: Any, group: dict[str, Any], param: Tensor) -> Operator | None:
        """That of a parameter of a group, if it is under such a penalty."""
        penalty = held_penalty(group)
        if penalty is None or not applies(penalty.stages, param):
            return None
        penalty = penalty.scaled(optimizer.state.get(param, {}).get("penalty_scale", 1.0))
        return cls(penalty, Cut(param, grouping_of(group, penalty.by), penalty.stages))

    def value(self, x: Tensor) -> float:
        """The penalty at x."""
        return float(self.penalty.value(x, self.cut.grouping))

    def take_(self, x: Tensor, step: float) -> None:
        """Replace x by the minimizer of ``step value(z) + 1/2 ||z - x||^2``."""
        run_stages([self.cut], [x], [torch.tensor(step, dtype=torch.float64, device=x.device)], None)


def mix(work: list[Tensor], before: list[Tensor], share: float, skip: Tensor | None) -> None:
    """``(1 - share) * before + share * work``, in place; ``before`` where ``skip`` is true, bit by bit."""
    for new, old in zip(work, before, strict=True):
        if share != 1:
            wide = torch.promote_types(new.dtype, torch.float32)
            new.copy_((1 - share) * old.to(wide) + share * new.to(wide))
        if skip is not None:
            new.copy_(torch.where(skip, old, new))


def held_penalty(group: dict[str, Any]) -> Penalty | None:
    """The penalty of a parameter group if its operator comes after the step: a constraint, or one of stages."""
    penalty = penalty_from_plain(group["penalty"])
    return penalty if penalty is not None and penalty.stages else None


def has_constraint(group: dict[str, Any]) -> bool:
    """Whether some weights are not allowed, that is, whether the penalty may be infinite."""
    held = held_penalty(group)
    stages = () if held is None else held.stages
    return any(stage.kind == "clip" or (stage.kind == "call" and stage.penalty.projects) for stage in stages)


def take_penalty(optimizer: Any, group: dict[str, Any]) -> Penalty | None:
    """The penalty of a parameter group, whose entry then holds plain values.

    Raises:
        ValueError: the optimizer is one in a metric, and the penalty has no exact operator there; or it is to be
            differentiated through.
        RuntimeError: a parameter is complex, sharded or flat, and the penalty is not for such.
    """
    penalty = penalty_from_plain(group["penalty"])
    if penalty is None:
        return None
    if not isinstance(group["penalty"], dict):
        group["penalty"] = penalty.to_plain()
    if not penalty.stages:
        return penalty
    name, kind = penalty.name, type(optimizer).__name__
    if group["differentiable"]:
        what = "a constraint" if penalty.projects else repr(name)
        raise ValueError(f"differentiable=True: expected a penalty, got {what}" + _FUSED * (not penalty.projects))
    if getattr(optimizer, "_in_metric", False) and penalty.not_in_metric:
        raise ValueError(
            f"penalty: {kind} takes its operator in a diagonal metric, and {name!r} is not exact there: "
            f"{penalty.not_in_metric}; choose RMDA or ProxSGD"
        )
    for param in group["params"]:
        if not applies(penalty.stages, param):
            continue
        if param.is_complex():
            raise RuntimeError(
                f"a penalty on complex parameters is not defined: put the {param.dtype} parameter of shape "
                f"{tuple(param.shape)} in a group with penalty=None"
            )
        if penalty.whole and (is_flat(param) or shard_groups(param)):
            raise RuntimeError(
                f"penalty: {name!r} needs all of a weight, and the parameter of shape {tuple(param.shape)} is "
                "sharded or flat: leave it out of the penalty, or take one of its groups"
            )
    return penalty


_FUSED = ", whose operator autograd does not run through"


def take_constraint(group: dict[str, Any], batch: Any, optimizer: Any) -> Held | None:
    """What comes after a step of a batch of the group, whose penalty is then none for the step. Half-precision
    parameters get a point in float32, or it would be rounded before its operator."""
    penalty = held_penalty(group)
    if penalty is None:
        return None
    which = [index for index, param in enumerate(batch.params) if applies(penalty.stages, param)]
    batch.strengths = [0.0] * len(batch.strengths)
    if penalty.projects:
        return Held(penalty, which, [])
    grouping = grouping_of(group, penalty.by)
    params = [batch.params[index] for index in which]
    scales = [optimizer.state.get(param, {}).get("penalty_scale", 1.0) for param in params]
    cuts = [cut_of(penalty, grouping, param, scale) for param, scale in zip(params, scales, strict=True)]
    batch.work = [work.to(state_dtype(work)) for work in batch.work]
    batch.grads = [grad.to(state_dtype(grad)) for grad in batch.grads]
    return Held(penalty, which, cuts)


def step_batches(optimizer: Any, group: dict[str, Any], batches: list[Any]) -> None:
    """The step of a parameter group, in the batches that its tensors were gathered in, which stay as they are."""
    for batch in (one.copy() for one in batches):  # coupled ones are made one after the other
        held = take_constraint(group, batch, optimizer)
        if held is None:
            optimizer._update(group, batch)
        else:
            update_held(optimizer, group, batch, held)
        batch.write_back()


def update_held(optimizer: Any, group: dict[str, Any], batch: Any, held: Held) -> None:
    """A step of a batch under a constraint or stages. A learning rate of 0, as checkpoints are prepared with, moves
    nothing: at the first step, and under a constraint at all."""
    lr, share, found_inf = group["lr"], optimizer._share(group), getattr(optimizer, "found_inf", None)
    fresh = batch.lists is None and not any("step" in optimizer.state.get(param, {}) for param in batch.params)
    still = not (isinstance(lr, Tensor) and not lr.is_cpu) and lr == 0 and (held.penalty.projects or fresh)
    before = [work.detach().clone() for work in batch.work]
    optimizer._update(group, batch)
    if still:
        for new, old in zip(batch.work, before, strict=True):
            new.copy_(old)
        return
    held.operate(optimizer, group, batch)
    skip = None if found_inf is None else found_inf.to(batch.work[0].device).reshape(()) != 0
    mix(batch.work, before, share, skip)
