"""When to stop, what happened on the way, and what came out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stopping:
    """When a run is finished, besides its number of iterations; the first rule that holds counts.

    Rules are looked at after every iteration, with minibatches after every epoch.

    Args:
        step: ``|theta - last theta| <= step * |theta|``. None: 100 times the dtype's rounding unit, and never with
            minibatches; 0: when nothing changes; negative: never.
        gradient: the largest entry of the gradient on the support is at most this. 0: never.
        loss: the loss fell by at most this part of its value. 0: never.
        support: the support has stayed the same for so many looks. None: never.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> Stopping(gradient=1e-6, support=5)
        Stopping(step=None, gradient=1e-06, loss=0.0, support=5)
    """

    step: float | None = None
    gradient: float = 0.0
    loss: float = 0.0
    support: int | None = None

    def __post_init__(self) -> None:
        for name in ("gradient", "loss"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {getattr(self, name)!r}")
        if self.step is not None and not self.step == self.step:
            raise ValueError(f"step: expected a number or None, got {self.step!r}")
        if self.support is not None and (not isinstance(self.support, int) or self.support < 1):
            raise ValueError(f"support: expected a whole number >= 1 or None, got {self.support!r}")


@dataclass
class History:
    """One entry for the start and one for every look (see :class:`Stopping`); ``[T, *batch]`` on the CPU.

    Attributes:
        iteration: made so far, ``[T]`` int64.
        seconds: since the start, ``[T]`` float64, looks included.
        loss: with ridge, on all rows, ``[T, *batch]`` float64.
        changes: places that entered the support, ``[T, *batch]`` int64.
        gradient: the largest magnitude on the support, ``[T, *batch]`` float64.
        damping: of the last curvature, relative to its diagonal, ``[T, *batch]`` float64.

    Example:
        >>> from sparse_accel.sparse_recovery import LeastSquares, solve
        >>> result = solve(LeastSquares(torch.eye(2), torch.tensor([1.0, 2.0])), 1)
        >>> result.history.loss
        tensor([1.2500, 0.2500, 0.2500], dtype=torch.float64)
    """

    iteration: Tensor
    seconds: Tensor
    loss: Tensor
    changes: Tensor
    gradient: Tensor
    damping: Tensor

    def __len__(self) -> int:
        return len(self.iteration)


@dataclass
class Recorder:
    """Collects a :class:`History`."""

    batch: torch.Size
    iteration: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rows: list[tuple[Tensor, ...]] = field(default_factory=list)

    def add(self, iteration: int, seconds: float, loss: Tensor, changes: Tensor, gradient: Tensor,
            damping: Tensor) -> None:  # fmt: skip
        self.iteration.append(iteration)
        self.seconds.append(seconds)
        values = (loss.double(), changes, gradient.double(), damping)
        self.rows.append(tuple(value.detach().to("cpu", copy=True).view(self.batch) for value in values))

    def history(self) -> History:
        columns = [torch.stack(column) for column in zip(*self.rows, strict=True)]
        return History(
            torch.tensor(self.iteration, device="cpu"),
            torch.tensor(self.seconds, dtype=torch.float64, device="cpu"),
            *columns,
        )


@dataclass
class Recovery:
    """What :func:`solve` found.

    Attributes:
        theta: of the problem's shape, zero outside the support.
        support: bool, the same shape, exactly k places in each problem of a batch; a place may hold a zero.
        loss: with ridge, on all rows, ``[*batch]``.
        iterations: made by the longest run of the batch.
        reasons: why each run ended, in the order of the flattened batch: ``"step"``, ``"gradient"``, ``"loss"``,
            ``"support"`` (see :class:`Stopping`), ``"stalled"`` (no step lowers the loss), ``"iterations"``,
            ``"diverged"`` (the last finite theta is returned).
        damping: the most that a singular or indefinite curvature needed, ``[*batch]`` float64, relative to its
            diagonal; at least what was asked for.
        history: see :class:`History`.

    Example:
        >>> from sparse_accel.sparse_recovery import LeastSquares, solve
        >>> print(solve(LeastSquares(torch.eye(2), torch.tensor([1.0, 2.0])), 1))
        1 of 2 coordinates, loss 0.25, 2 iterations, ended by: step
    """

    theta: Tensor
    support: Tensor
    loss: Tensor
    iterations: int
    reasons: tuple[str, ...]
    damping: Tensor
    history: History

    @property
    def converged(self) -> bool:
        """No run of the batch ended by ``"iterations"`` or ``"diverged"``."""
        return not {"iterations", "diverged"} & set(self.reasons)

    def __str__(self) -> str:
        runs = len(self.reasons)
        kept, size = int(self.support.sum()) // runs, self.theta.numel() // runs
        return (
            f"{f'{runs} problems: ' if runs > 1 else ''}{kept} of {size} coordinates, loss "
            f"{float(self.loss.double().mean()):.4g}{' on average' if runs > 1 else ''}, {self.iterations} iterations, "
            f"ended by: {', '.join(sorted(set(self.reasons)))}"
        )


def minibatches(samples: int, size: int, seed: int) -> Iterator[Tensor]:
    """Endless epochs of random batches; every epoch sees every row once, the last batch of one may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(samples, generator=generator, device="cpu").split(size)
