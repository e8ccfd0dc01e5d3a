"""What a model costs when some units of its widths are gone: MACs, parameters or measured latency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparse_accel.channels.widths import ExpertWidth, Width
from sparse_accel.prune.structured.choose import unit_sets
from sparse_accel.removal.remove import remove_units
from sparse_accel.report import count_macs, latencies_ms

Counts = dict[str, int]


class Cost(Protocol):
    """A cost as it is estimated while units are given out, and as it is in the end."""

    total: float

    def savings(self, names: Sequence[str], points: np.ndarray, kept: Mapping[str, int]) -> np.ndarray:
        """What going from ``kept`` to ``points`` units of some widths, all together, saves."""

    def measure(self, kept: Mapping[str, int]) -> float:
        """The true cost of the model with so many units."""


def first_units(width: Width, count: int) -> Tensor:
    """The first ``count`` units, as many of each set."""
    sets = unit_sets(width)
    if sets is None:
        return torch.arange(count, device="cpu")
    number = int(sets.max()) + 1
    return torch.cat([(sets == one).nonzero().flatten()[: count // number] for one in range(number)])


def smaller(work: nn.Module, example_inputs: Any, widths: Sequence[Width], kept: Mapping[str, int]) -> nn.Module:
    """The model with any so many units of each width."""
    chosen = {width.name: first_units(width, kept[width.name]) for width in widths if kept[width.name] < width.units}
    return remove_units(work, example_inputs, chosen, verify=False, configs=False).model if chosen else work


class CountedCost:
    """MACs of one run on the example, or parameters; a layer's are those of the dense one times the shares kept.

    Args:
        kind: ``"flops"`` or ``"params"``.
        work: the model.
        example_inputs: see :func:`~sparse_accel.channels.call.run_model`.
        widths: of which units may go.
    """

    def __init__(self, kind: str, work: nn.Module, example_inputs: Any, widths: Sequence[Width]) -> None:
        self.kind, self.work, self.example_inputs = kind, work, example_inputs
        self.widths = {width.name: width for width in widths}
        macs = count_macs(work, example_inputs) if kind == "flops" else {}
        self.total = self._count(work) if kind == "params" else float(macs.get("", 0))
        if not self.total:
            raise ValueError("budget: flops: torch.utils.flop_counter counts nothing on example_inputs")
        # Of each layer: its cost, and per width the share of its outputs and of its inputs that one unit owns.
        self.layers: dict[str, tuple[float, dict[str, float], dict[str, float]]] = {}
        for width in widths:
            for weight, rows in width.rows.items():
                module = weight.rpartition(".")[0]
                size = self._rows(module)
                self._layer(module, macs)[1][width.name] = rows.shape[1] / size
            for consumer in width.consumers:
                share = consumer.channels.shape[1] / self._inputs(consumer.module)
                self._layer(consumer.module, macs)[2][width.name] = share
            if isinstance(width, ExpertWidth):
                self._layer(width.stack.module, macs)[1][width.name] = 1 / width.units
            if width.kind == "heads":
                self._attention(width, macs)
        for width in widths:  # depthwise: their inputs are their outputs
            for module in width.inner:
                self.layers.get(module, (0.0, {}, {}))[2].pop(width.name, None)

    def _layer(self, module: str, macs: Counts) -> tuple[float, dict[str, float], dict[str, float]]:
        if module not in self.layers:
            own = self.work.get_submodule(module).parameters(recurse=False)
            cost = float(sum(p.numel() for p in own)) if self.kind == "params" else float(macs.get(module, 0))
            self.layers[module] = (cost, {}, {})
        return self.layers[module]

    def _attention(self, width: Width, macs: Counts) -> None:
        """The products of queries, keys and values: a layer of its own whose outputs are the heads."""
        inside = [name for name in macs if name.startswith(f"{width.name}.") and not any(
            other != name and name.startswith(f"{other}.") and other.startswith(f"{width.name}.") for other in macs
        )]  # fmt: skip
        rest = macs.get(width.name, 0) - sum(macs[name] for name in inside)
        if rest > 0:
            self.layers[f"{width.name} (attention)"] = (float(rest), {width.name: 1 / width.units}, {})

    def _rows(self, module: str) -> int:
        weight = self.work.get_submodule(module).get_parameter("weight")
        kind = type(self.work.get_submodule(module)).__name__
        return weight.shape[1 if kind in ("Conv1D", "Embedding") or kind.startswith("ConvTranspose") else 0]

    def _inputs(self, module: str) -> int:
        layer = self.work.get_submodule(module)
        for name in ("in_features", "in_channels"):
            if isinstance(getattr(layer, name, None), int):
                return int(getattr(layer, name))
        return int(layer.get_parameter("weight").shape[0])  # Conv1D

    @staticmethod
    def _count(model: nn.Module) -> float:
        return float(sum(parameter.numel() for parameter in model.parameters()))

    def _share(self, parts: Mapping[str, float], kept: Mapping[str, int]) -> float:
        return max(0.0, 1.0 - sum(part * (self.widths[name].units - kept[name]) for name, part in parts.items()))

    def savings(self, names: Sequence[str], points: np.ndarray, kept: Mapping[str, int]) -> np.ndarray:
        """See :class:`Cost`."""
        saved = np.zeros(len(points))
        gone = {name: (kept[name] - points).astype(float) for name in names}
        for cost, *sides in self.layers.values():
            if not any(name in side for side in sides for name in names):
                continue
            before, after = 1.0, np.ones(len(points))
            for side in sides:
                share = self._share(side, kept)
                rest = share - sum((side[name] * lost for name, lost in gone.items() if name in side), start=0.0)
                before, after = before * share, after * np.maximum(rest, 0)
            saved += cost * (before - after)
        return saved

    def measure(self, kept: Mapping[str, int]) -> float:
        """See :class:`Cost`."""
        model = smaller(self.work, self.example_inputs, list(self.widths.values()), kept)
        return self._count(model) if self.kind == "params" else float(count_macs(model, self.example_inputs)[""])


class UnitCost:
    """Units, whatever they cost."""

    def __init__(self, widths: Sequence[Width]) -> None:
        self.widths = {width.name: width for width in widths}
        self.total = float(sum(width.units for width in widths))

    def savings(self, names: Sequence[str], points: np.ndarray, kept: Mapping[str, int]) -> np.ndarray:
        """See :class:`Cost`."""
        return np.asarray(sum(kept[name] - points for name in names), dtype=float)

    def measure(self, kept: Mapping[str, int]) -> float:
        """See :class:`Cost`."""
        return float(sum(kept[name] for name in self.widths))


class LatencyCost:
    """Milliseconds of one run on the example, measured: each width alone at some sizes, added up for all.

    Under a process group rank 0 measures for all.
    """

    POINTS = (1.0, 0.75, 0.5, 0.25)

    def __init__(self, work: nn.Module, example_inputs: Any, widths: Sequence[Width]) -> None:
        self.work, self.example_inputs = work, example_inputs
        self.widths = {width.name: width for width in widths}
        self.curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        every = {width.name: width.units for width in widths}
        self.total = self.measure(every)
        for width in widths:
            sets = unit_sets(width)
            number = 1 if sets is None else int(sets.max()) + 1
            counts = sorted({max(1, math.floor(p * width.units / number)) * number for p in self.POINTS})
            models = [smaller(work, example_inputs, widths, every | {width.name: count}) for count in counts]
            times = _from_first(latencies_ms(models, example_inputs))
            self.curves[width.name] = np.array(counts, dtype=float), np.minimum.accumulate(times[::-1])[::-1]

    def savings(self, names: Sequence[str], points: np.ndarray, kept: Mapping[str, int]) -> np.ndarray:
        """See :class:`Cost`: those of each alone, added up."""
        return np.asarray(sum(self._saved(name, points, kept) for name in names))

    def _saved(self, name: str, points: np.ndarray, kept: Mapping[str, int]) -> np.ndarray:
        counts, times = self.curves[name]
        slope = max(0.0, (times[-1] - times[0]) / max(1.0, counts[-1] - counts[0]))
        below = np.minimum(0.0, points - counts[0]) * slope
        now = np.interp(kept[name], counts, times) + min(0.0, kept[name] - counts[0]) * slope
        return now - np.interp(points, counts, times) - below

    def measure(self, kept: Mapping[str, int]) -> float:
        """See :class:`Cost`."""
        model = smaller(self.work, self.example_inputs, list(self.widths.values()), kept)
        return float(_from_first(latencies_ms([model], self.example_inputs))[0])


def _from_first(times: Sequence[float]) -> np.ndarray:
    """Rank 0's numbers."""
    values = torch.tensor(times, dtype=torch.float64, device="cpu")
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        values = values.to(device)
        dist.broadcast(values, 0)
    return np.asarray(values.cpu())
