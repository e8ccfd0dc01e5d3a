"""Steps under a constraint: without penalty to the point itself, which is then projected and mixed with the old."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_accel.penalties import Penalty, penalty_from_plain


class Held(NamedTuple):
    """The constraint of a batch of tensors."""

    constraint: Any
    which: list[int]  # of the batch's tensors

    def project(self, work: list[Tensor]) -> None:
        """Project the tensors that the constraint is about, in place."""
        for index in self.which:
            self.constraint.project_(work[index])

    def mix(self, work: list[Tensor], before: list[Tensor], share: float, skip: Tensor | None) -> None:
        """``(1 - share) * before + share * projected``; ``before`` where ``skip`` is true, bit by bit."""
        self.project(work)
        for new, old in zip(work, before, strict=True):
            if share != 1:
                wide = torch.promote_types(new.dtype, torch.float32)
                new.copy_((1 - share) * old.to(wide) + share * new.to(wide))
            if skip is not None:
                new.copy_(torch.where(skip, old, new))


def constraint_of(group: dict[str, Any]) -> Penalty | None:
    """The constraint of a parameter group, if its penalty is one."""
    penalty = penalty_from_plain(group["penalty"])
    return penalty if penalty is not None and penalty.projects else None


def take_constraint(group: dict[str, Any], batch: Any) -> Held | None:
    """The constraint of a batch of the group, whose penalty is then none for the step."""
    constraint = constraint_of(group)
    if constraint is None:
        return None
    held = Held(constraint, [index for index, strength in enumerate(batch.strengths) if strength])
    batch.strengths = [0.0] * len(batch.strengths)
    return held


def step_batches(optimizer: Any, group: dict[str, Any], batches: list[Any]) -> None:
    """The step of a parameter group, in the batches that its tensors were gathered in, which stay as they are."""
    for batch in [batch.copy() for batch in batches]:
        held = take_constraint(group, batch)
        if held is None:
            optimizer._update(group, batch)
        else:
            update_held(optimizer, group, batch, held)
        batch.write_back()


def update_held(optimizer: Any, group: dict[str, Any], batch: Any, held: Held) -> None:
    """A step of a batch under a constraint. A learning rate of 0, as checkpoints are prepared with, moves nothing."""
    lr, share, found_inf = group["lr"], optimizer._share(group), getattr(optimizer, "found_inf", None)
    still = not (isinstance(lr, Tensor) and not lr.is_cpu) and lr == 0
    before = [work.detach().clone() for work in batch.work]
    optimizer._update(group, batch)
    if still:
        for new, old in zip(batch.work, before, strict=True):
            new.copy_(old)
        return
    skip = None if found_inf is None else found_inf.to(batch.work[0].device).reshape(()) != 0
    held.mix(batch.work, before, share, skip)
