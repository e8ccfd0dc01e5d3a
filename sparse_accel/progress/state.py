"""Where a call is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a call is.

    Attributes:
        task: what runs, such as ``"ISpaSP"`` or ``"refine"``.
        done: steps that are finished.
        total: steps in all; None where that is not known.
        label: what was done last, such as the name of a layer.
        error: that it came with; None where there is none.
        seconds: since the start.
        seconds_left: if the steps to come take as long as those before; None before the first.

    Example:
        >>> import torch, sparse_accel as sa
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> def tell(at):
        ...     print(at.task, at.done, at.total, at.label, at.error is None or at.error < 1)
        >>> _ = sa.prune.CurvatureIHT(net, 0.5, progress=tell).run(torch.randn(64, 4))
        CurvatureIHT 0 2  True
        CurvatureIHT 1 2 0 True
        CurvatureIHT 2 2 2 True
    """

    task: str
    done: int
    total: int | None
    label: str = ""
    error: float | None = None
    seconds: float = 0.0
    seconds_left: float | None = None

    def __str__(self) -> str:
        of = "" if self.total is None else f"/{self.total}"
        error = "" if self.error is None else f", error {self.error:.3g}"
        left = "" if self.seconds_left is None else f", {clock(self.seconds_left)} left"
        return f"{self.task} {self.done}{of}{f' {self.label}' if self.label else ''}{error}{left}"


def clock(seconds: float) -> str:
    """Seconds for people.

    Example:
        >>> clock(7.2), clock(75), clock(7260)
        ('7 s', '1:15', '2:01:00')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
