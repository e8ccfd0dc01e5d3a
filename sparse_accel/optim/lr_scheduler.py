"""Learning-rate schedules that end the stages of RMDA and RAMDA."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

__all__ = ["MultiStageLR"]

_MOMENTUM = ("divide", "ramp", "constant")


class MultiStageLR(LRScheduler):
    """Train in stages: at each milestone the learning rate is multiplied by gamma and the optimizer restarts.

    Dual averaging converges stage by stage (Huang & Lee, ICLR 2022, section 3.1). What becomes of the momentum c:

    - ``"divide"``: ``c = min(c / gamma, 1)`` at each milestone, as in the 2022 paper. With c = 0.1 and gamma = 0.1
      it is 1 from the first milestone on, and the weights themselves have exact zeros.
    - ``"ramp"``: constant, and after the last milestone ``min(c * sqrt(j), 1)`` at the j-th optimizer step, as in
      the code of the 2024 paper (arXiv 2403.14398). Steps that a GradScaler skips count.
    - ``"constant"``: as it is; take the zeros from ``proximal_parameters()``.

    :class:`sparse_accel.RAMDA` restarts likewise, and its ``eps`` is multiplied by gamma too.

    With other optimizers, such as :class:`sparse_accel.ProxSGD`, only the learning rate changes: they have no
    stages, and ``momentum`` is not looked at.

    An optimizer inside another (accelerate's, ``ZeroRedundancyOptimizer``, or any that keeps one in an attribute) is
    restarted all the same.

    Args:
        optimizer: an optimizer of torch or of this package, or a wrapper around one.
        milestones: numbers of scheduler steps, usually epochs, after which a stage ends; positive and increasing.
        gamma: factor of the learning rate, > 0.
        momentum: ``"divide"``, ``"ramp"`` or ``"constant"``.
        last_epoch: as in torch's schedulers.

    Raises:
        ValueError: milestones, gamma or momentum are not as described.

    Example:
        >>> import torch, sparse_accel as sa
        >>> opt = sa.RMDA([torch.nn.Parameter(torch.ones(2, 2))], lr=0.1, momentum=0.1)
        >>> sched = MultiStageLR(opt, milestones=[1, 3], gamma=0.1)
        >>> opt.step()
        >>> sched.step()
        >>> round(opt.param_groups[0]["lr"], 9), opt.param_groups[0]["momentum"], opt.param_groups[0]["restart"]
        (0.01, 1.0, True)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[int],
        gamma: float = 0.1,
        momentum: str = "divide",
        last_epoch: int = -1,
    ) -> None:
        milestones = list(milestones)
        if any(isinstance(m, bool) or not isinstance(m, int) or m < 1 for m in milestones):
            raise ValueError(f"milestones: expected positive integers, got {milestones}")
        if any(later <= earlier for earlier, later in itertools.pairwise(milestones)):
            raise ValueError(f"milestones: expected an increasing sequence, got {milestones}")
        if not (math.isfinite(gamma) and gamma > 0):
            raise ValueError(f"gamma: expected a finite number > 0, got {gamma!r}")
        if momentum not in _MOMENTUM:
            raise ValueError(f"momentum: expected one of {', '.join(map(repr, _MOMENTUM))}, got {momentum!r}")
        self.milestones = milestones
        self.gamma = gamma
        self.momentum = momentum
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates after this step, one per group."""
        factor = self.gamma if self.last_epoch in self.milestones else 1.0
        return [group["lr"] * factor for group in self.optimizer.param_groups]

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        stages = sum(milestone <= self.last_epoch for milestone in self.milestones)
        return [base * self.gamma**stages for base in self.base_lrs]

    def _update_lr(self, epoch: int | None = None) -> None:
        super()._update_lr(epoch)
        if self.last_epoch not in self.milestones:
            return
        layers = list(_layers(self.optimizer))
        staged = [layer for layer in layers if hasattr(type(layer), "restart")]
        if not staged and hasattr(self.optimizer, "restart"):  # a wrapper that hands attributes on
            staged = [self.optimizer]
        for layer in staged:
            layer.restart()  # type: ignore[attr-defined]
        if not staged:
            return
        for group in {id(group): group for layer in layers for group in layer.param_groups}.values():
            if "restart" in group:  # some wrappers have groups of their own, and copy their entries to the inner ones
                group["restart"] = True
            if "eps_scale" in group:  # RAMDA's eps follows the learning rate, from the restart on
                group["eps_scale"] *= self.gamma
            if self.momentum == "divide":
                raised = group["momentum"] / self.gamma
                group["momentum"] = raised if raised < 1 - 1e-9 else 1.0  # c = 0.01, gamma = 0.1: 1 after two
            elif self.momentum == "ramp" and self.last_epoch == self.milestones[-1]:
                group["momentum_ramp"] = 0


def _layers(optimizer: Optimizer) -> Iterator[Optimizer]:
    """An optimizer and those that it keeps in its attributes, and so on."""
    todo, seen = [optimizer], {id(optimizer)}
    while todo:
        outer = todo.pop()
        yield outer
        inside = [item for item in vars(outer).values() if isinstance(item, Optimizer) and id(item) not in seen]
        seen.update(map(id, inside))
        todo += inside
