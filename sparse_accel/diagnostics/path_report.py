"""A path between two networks: its losses, and the parameters on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sparse_accel.diagnostics._chain import State
from sparse_accel.report import Column, Contents, Fact, Lines, Report, Table

LINES = ("path", "straight", "aligned")


@dataclass(frozen=True)
class LowLossPath(Report):
    """What :func:`low_loss_path` found; a table when printed, and ``path(t)`` are the parameters at t in [0, 1].

    Attributes:
        layers: the hidden layers, first to last, each with the number of its units.
        refit: whether outer weights of half of the units were refitted, or rescaled.
        segments: what each segment moves: ``"outer"`` weights, or ``"inner"`` ones, which the outputs do not see.
        ends: the losses of both networks.
        t: where losses were taken, from 0 to 1; all segments are equally long.
        losses: along the path.
        straight: along the straight line between the parameters.
        aligned: the same after the second network's units were put in the order of the first one's; None if not asked
            for.
    """

    layers: dict[str, int]
    refit: bool
    segments: tuple[str, ...]
    ends: tuple[float, float]
    t: tuple[float, ...]
    losses: tuple[float, ...]
    straight: tuple[float, ...]
    aligned: tuple[float, ...] | None
    _knots: dict[str, list[State]] = field(repr=False, compare=False, default_factory=dict)
    _keys: dict[str, Any] = field(repr=False, compare=False, default_factory=dict)

    def barrier_of(self, line: str = "path") -> float:
        """The largest loss on a line minus the larger one of its ends; 0 at least, NaN where a loss is.

        Raises:
            ValueError: the line is none of ``"path"``, ``"straight"``, ``"aligned"``, or was not asked for.
        """
        values = {"path": self.losses, "straight": self.straight, "aligned": self.aligned}.get(line)
        if values is None:
            known = [name for name in LINES if name != "aligned" or self.aligned is not None]
            raise ValueError(f"line: expected one of {known}, got {line!r}")
        if any(math.isnan(value) for value in values):
            return math.nan
        return max(values) - max(values[0], values[-1])

    @property
    def barrier(self) -> float:
        """:meth:`barrier_of` the path."""
        return self.barrier_of("path")

    def __call__(self, t: float, line: str = "path") -> dict[str, Any]:
        """The parameters and buffers at t, for ``load_state_dict``; at 0 and 1 those of the networks, to the bit.

        Args:
            t: in [0, 1].
            line: ``"path"``, ``"straight"`` or ``"aligned"``, whose end is the second network with its units in
                another order.

        Raises:
            ValueError: t lies outside, or there is no such line.
        """
        if not 0 <= t <= 1:
            raise ValueError(f"t: expected a number in [0, 1], got {t!r}")
        self.barrier_of(line)
        state = between(self._knots[line], t)
        return {key: state[item].clone() if isinstance(item, str) else item for key, item in self._keys.items()}

    def to_plain(self) -> dict[str, Any]:
        """Everything but the parameters as JSON-able data."""
        return {
            "layers": dict(self.layers),
            "refit": self.refit,
            "segments": list(self.segments),
            "ends": list(self.ends),
            "t": list(self.t),
            "losses": list(self.losses),
            "straight": list(self.straight),
            "aligned": None if self.aligned is None else list(self.aligned),
            "barriers": {line: self.barrier_of(line) for line in LINES if line != "aligned" or self.aligned},
        }

    def plot(self, path: str | Path, *, title: str | None = None) -> Path:
        """Draw the losses over t; segments that no output sees are shaded.

        Args:
            path: the file to write.
            title: of the picture.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plots need matplotlib: pip install matplotlib") from error
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        for number, segment in enumerate(self.segments):
            if segment == "inner":
                axes.axvspan(number / len(self.segments), (number + 1) / len(self.segments), color="0.94", zorder=0)
        curves = {"straight": self.straight, "aligned": self.aligned, "path": self.losses}
        for (line, values), color in zip(curves.items(), ("#868e96", "#1971c2", "#e8590c"), strict=True):
            if values is not None:
                label = f"{line}: barrier {self.barrier_of(line):.3g}"
                axes.plot(self.t, values, label=label, color=color, linewidth=2)
        axes.plot([0, 1], self.ends, "o", color="0.2", markersize=5)
        axes.set(xlabel="t", ylabel="loss", title=title or "From one network to the other", xlim=(-0.01, 1.01))
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
        return path

    def contents(self) -> Contents:
        """See :class:`~sparse_accel.Report`."""
        how = "refitted" if self.refit else "rescaled"
        curves = {"path": self.losses, "straight": self.straight, "aligned": self.aligned}
        names = {
            "path": f"path of {len(self.segments)} segments, outer weights {how}",
            "straight": "straight line",
            "aligned": "straight line, units aligned",
        }
        known = {line: values for line, values in curves.items() if values is not None}
        rows = [[names[line], max(values), self.barrier_of(line)] for line, values in known.items()]
        shape = ", ".join(f"{name or 'model'} ({units} units)" for name, units in self.layers.items())
        facts = [
            Fact("losses of the ends", f"{self.ends[0]:.4g}, {self.ends[1]:.4g}"),
            Fact("hidden layers", shape),
        ]
        columns = [Column("line", "line"), Column("largest", "largest loss"), Column("barrier", "barrier")]
        drawn = {line: list(zip(self.t, values, strict=True)) for line, values in known.items()}
        marks = [number / len(self.segments) for number in range(1, len(self.segments))]
        chart = Lines("Loss from one network to the other", "t", drawn, marks=marks)
        return Contents("Path between two networks", facts, [Table(columns, rows)], [chart])


def between(knots: Sequence[State], t: float) -> State:
    """The state at t; what is no number with a fraction changes in the middle."""
    count = len(knots) - 1
    segment = min(int(t * count), count - 1)
    share = t * count - segment
    start, end = knots[segment], knots[segment + 1]
    if share in (0.0, 1.0):
        return end if share else start
    late = end if share >= 0.5 else start
    return {
        name: torch.lerp(tensor, end[name], share) if tensor.is_floating_point() else late[name]
        for name, tensor in start.items()
    }
