"""The inexact proximal problem: proximal gradient steps with a Barzilai-Borwein length and a nonmonotone line search
(SpaRSA: Wright, Nowak and Figueiredo, IEEE Transactions on Signal Processing 2009)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparse_accel.groups import GroupLayout

from .common.projection import Operator
from .steps.prox import proximal_point

_MEMORY = 5  # objectives that a new one is held against
_DECREASE = 1e-4  # share of the model's decrease that a step must bring
_SHORTEST = 1e-8  # steps shorter than this tell of a kink, or of rounding


@dataclasses.dataclass
class Piece:
    """One tensor of the problem; shapes and strides alike, in float32 or float64."""

    z: Tensor  # what the quadratic term is about
    lr: float  # > 0
    weight_decay: float
    layout: GroupLayout
    strength: float  # of the penalty; 0: none
    prox: str  # "soft" or "hard"
    operator: Operator | None = None  # of a penalty that has neither

    def smooth(self, x: Tensor) -> float:
        """``|x - z|^2 / (2 lr) + weight_decay / 2 |x|^2``."""
        value = (x - self.z).double().square().sum() / (2 * self.lr)
        if self.weight_decay:
            value = value + self.weight_decay / 2 * x.double().square().sum()
        return float(value)

    def penalty(self, x: Tensor) -> float:
        """The penalty at x."""
        if self.operator is not None:
            return self.operator.value(x)
        if not self.strength:
            return 0.0
        outer, groups, inner, blocks = self.layout
        view = x.as_strided((blocks, outer, groups, inner), (outer * groups * inner, groups * inner, inner, 1))
        squares, size = view.double().square().sum((1, 3)), outer * inner
        if self.prox == "hard":
            return float(self.strength * size * (squares != 0).sum())
        return float(self.strength * size**0.5 * squares.sqrt().sum())

    def gradient(self, x: Tensor, of_loss: Tensor) -> Tensor:
        """Of loss and :meth:`smooth`, times lr: the metric in which all tensors have curvature 1 or more."""
        out = x - self.z + self.lr * of_loss
        return out + self.lr * self.weight_decay * x if self.weight_decay else out

    def forward_backward(self, x: Tensor, gradient: Tensor, length: float) -> Tensor:
        """The proximal gradient step of a length, from x."""
        out = x - length * gradient
        if self.operator is not None:
            self.operator.take_(out, length * self.lr)
        elif self.strength:
            threshold = torch.tensor(length * self.lr * self.strength, dtype=x.dtype, device=x.device)
            out = proximal_point(out, self.layout, threshold, self.prox)
        return out


@dataclasses.dataclass
class Solution:
    """Where the inner solver stopped."""

    points: list[Tensor]
    calls: int  # of the closure
    length: float  # of the last step, for the next problem
    relative: float  # the proximal gradient's norm over that at the start
    converged: bool


Evaluate = Callable[[Sequence[Tensor]], tuple[float, list[Tensor], Sequence[Tensor]]]


def _dot(pieces: Sequence[Piece], a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """``sum <a, b> / lr``."""
    return sum(float((x.double() * y.double()).sum()) / piece.lr for piece, x, y in zip(pieces, a, b, strict=True))


def solve(
    pieces: Sequence[Piece],
    points: Sequence[Tensor],
    loss: float,
    grads: Sequence[Tensor],
    evaluate: Evaluate,
    *,
    length: float,
    tolerance: float,
    max_calls: int,
    rounding: float,
) -> Solution:
    """Minimize ``loss(x) + sum_t |x_t - z_t|^2 / (2 lr_t) + weight decay + penalty``.

    Args:
        pieces: the tensors' terms.
        points: where to start.
        loss: there.
        grads: of the loss, there.
        evaluate: takes points; returns the loss, its gradients, and the points as the model could hold them.
        length: of the first step, in (0, 1].
        tolerance: of the norm of the proximal gradient, relative to that at the start.
        max_calls: of ``evaluate``.
        rounding: relative error of the loss.
    """
    reference = length

    def scaled(at: Sequence[Tensor], of_loss: Sequence[Tensor]) -> list[Tensor]:
        return [piece.gradient(x, g) for piece, x, g in zip(pieces, at, of_loss, strict=True)]

    def forward(at: Sequence[Tensor], gradients: Sequence[Tensor], size: float) -> list[Tensor]:
        return [p.forward_backward(x, g, size) for p, x, g in zip(pieces, at, gradients, strict=True)]

    def residual(at: Sequence[Tensor], gradients: Sequence[Tensor]) -> float:
        moved = [x - y for x, y in zip(at, forward(at, gradients, reference), strict=True)]
        return _dot(pieces, moved, moved) ** 0.5 / reference

    def objective(at: Sequence[Tensor], value: float) -> float:
        return value + sum(piece.smooth(x) + piece.penalty(x) for piece, x in zip(pieces, at, strict=True))

    def curvature_length(
        at: Sequence[Tensor], of_loss: Sequence[Tensor], moved: Sequence[Tensor], square: float
    ) -> float:
        bend = _dot(pieces, moved, [a - b for a, b in zip(scaled(at, of_loss), gradients, strict=True)])
        return square / bend if bend > 0 else 1.0

    at_model: Sequence[Tensor]
    x, gradients = list(points), scaled(points, grads)
    first = residual(x, gradients)
    values = [objective(x, loss)]
    relative, calls = 1.0, 0
    if first == 0:
        return Solution(x, 0, length, 0.0, True)
    while calls < max_calls:
        candidate = forward(x, gradients, length)
        loss, grads, at_model = evaluate(candidate)
        candidate = list(at_model)
        calls += 1
        moved = [a - b for a, b in zip(candidate, x, strict=True)]
        square = _dot(pieces, moved, moved)
        value = objective(candidate, loss) if math.isfinite(loss) else math.inf
        bound = max(values) - _DECREASE / (2 * length) * square + rounding * abs(values[-1])
        if not value <= bound:
            if length <= _SHORTEST or square == 0:
                break
            length = min(length / 2, max(length / 100, curvature_length(candidate, grads, moved, square)))
            continue
        length = min(1.0, max(_SHORTEST, curvature_length(candidate, grads, moved, square)))
        x, gradients = candidate, scaled(candidate, grads)
        values = [*values, value][-_MEMORY:]
        relative = residual(x, gradients) / first
        if relative <= tolerance:
            return Solution(x, calls, length, relative, True)
    return Solution(x, calls, length, relative, False)
