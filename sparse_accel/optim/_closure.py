"""The proximal problem that a closure poses, as the inner solver sees it: points are tried in the parameters."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_accel.groups import GroupLayout

from . import _inner
from .common.projection import Operator


def real(param: Tensor) -> Tensor:
    """The parameter's values as real numbers, sharing its memory."""
    return torch.view_as_real(param.detach()) if param.is_complex() else param.detach()


def number(loss: Any) -> float:
    """A closure's result as a number."""
    return float(loss.detach() if isinstance(loss, Tensor) else loss)


@dataclasses.dataclass
class ClosureProblem:
    """Parameters with their pieces of the problem, in the same order.

    Args:
        closure: computes the loss and its gradients at the parameters.
        sign: -1 where the loss is maximized.
    """

    closure: Callable[[], Any]
    sign: float
    params: list[Tensor] = dataclasses.field(default_factory=list)
    pieces: list[_inner.Piece] = dataclasses.field(default_factory=list)

    def add(
        self, optimizer: Any, group: dict[str, Any], param: Tensor, z: Tensor, layout: GroupLayout, strength: float
    ) -> None:
        """Take in a parameter of one of the optimizer's groups: z, and how the penalty cuts it."""
        numbers = float(group["lr"]), float(group["weight_decay"]), layout, strength, optimizer._prox_name(group)
        self.pieces.append(_inner.Piece(z, *numbers, Operator.of(optimizer, group, param)))
        self.params.append(param)

    def gradients(self) -> list[Tensor]:
        """Those of the last call of the closure, in the pieces' dtype; zero for parameters without one."""
        grads = []
        for param, piece in zip(self.params, self.pieces, strict=True):
            if param.grad is None:
                grads.append(torch.zeros_like(piece.z))
                continue
            grad = param.grad.resolve_conj().resolve_neg()
            grad = torch.view_as_real(grad) if param.is_complex() else grad
            grads.append(torch.empty_like(piece.z).copy_(grad).mul_(self.sign))
        return grads

    def evaluate(self, points: Sequence[Tensor]) -> tuple[float, list[Tensor], list[Tensor]]:
        """Loss and gradients at a point, and what the parameters hold of it after rounding to their dtype."""
        held = []
        for param, point in zip(self.params, points, strict=True):
            real(param).copy_(point)
            held.append(torch.empty_like(point).copy_(real(param)))
        with torch.enable_grad():
            value = number(self.closure())
        return self.sign * value, self.gradients(), held

    def solve(self, first: Any, length: float, tolerance: float, max_calls: int) -> _inner.Solution:
        """From the closure's first result and its gradients to the solution, which the parameters then hold."""
        solution = _inner.solve(
            self.pieces,
            [piece.z for piece in self.pieces],
            self.sign * number(first),
            self.gradients(),
            self.evaluate,
            length=length,
            tolerance=tolerance,
            max_calls=max_calls,
            rounding=4 * torch.finfo(first.dtype if isinstance(first, Tensor) else torch.float64).eps,
        )
        for param, point in zip(self.params, solution.points, strict=True):
            real(param).copy_(point)
        return solution


def warn_unfinished(solution: _inner.Solution, tolerance: float) -> None:
    """Say that the inner solver stopped before its tolerance."""
    warnings.warn(
        f"SPPAM: the inner solver stopped after {solution.calls} closure calls with the proximal gradient "
        f"at {solution.relative:.1e} of its start, tolerance {tolerance:.1e}: raise max_inner "
        "(or tolerance), or lower lr; at a kink, as ReLU has, no gradient vanishes",
        RuntimeWarning,
        stacklevel=3,
    )
