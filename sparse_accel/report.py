"""Tables and plots."""

from __future__ import annotations

import copy
import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sparse_accel.channels.runs import first_of, run_as_is, run_model
from sparse_accel.wrappers import copy_model

logger = logging.getLogger(__name__)


def format_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> str:
    """A plain-text table: first column left-aligned, the others right-aligned; a row of None is a rule.

    Example:
        >>> print(format_table(["layer", "n"], [["conv", 1200], ["fc", 3]]))
        layer      n
        ------------
        conv   1,200
        fc         3
    """
    cells = [None if not row or row[0] is None else [_cell(item) for item in row] for row in rows]
    shown = [list(headers), *(row for row in cells if row is not None)]
    widths = [max(len(row[i]) for row in shown) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        return "  ".join([row[0].ljust(widths[0]), *rest]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    body = [rule if row is None else line(row) for row in cells]
    return "\n".join(([title] if title else []) + [line(headers), rule, *body])


def _cell(item: Any) -> str:
    if isinstance(item, bool) or item is None:
        return "" if item is None else str(item)
    if isinstance(item, int):
        return f"{item:,}"
    return f"{item:.4g}" if isinstance(item, float) else str(item)


def percent(part: float, whole: float) -> str:
    """``part`` of ``whole`` in percent; 0 of 0 is 0.

    Example:
        >>> percent(1, 8)
        '12.5 %'
    """
    return f"{100 * part / whole if whole else 0.0:.1f} %"


@dataclass(frozen=True)
class LayerChange:
    """One layer before and after compaction; MACs are multiply-accumulates of one run on the example."""

    name: str
    kind: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    params: tuple[int, int]
    macs: tuple[int, int]


@dataclass(frozen=True)
class CompactReport:
    """Dense against compact.

    Attributes:
        layers: every linear and convolution layer.
        params: elements of all parameters, before and after.
        macs: ``torch.utils.flop_counter`` FLOPs / 2 of one run on the example (linear maps only), before and after.
        latency_ms: median wall time of one run on the example, before and after; None where not measured.
        max_abs_diff: largest difference of the outputs on the example.
    """

    layers: list[LayerChange]
    params: tuple[int, int]
    macs: tuple[int, int]
    latency_ms: tuple[float, float] | None
    max_abs_diff: float

    def to_plain(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        return asdict(self)

    def __str__(self) -> str:
        rows: list[list[Any]] = [
            [layer.name, layer.kind, *(f"{old:,} → {new:,}" for old, new in (layer.inputs, layer.outputs))]
            + [f"{old:,} → {new:,}" for old, new in (layer.params, layer.macs)]
            for layer in self.layers
        ]
        total = [f"{old:,} → {new:,}" for old, new in (self.params, self.macs)]
        rows += [[None], ["total", "", "", "", *total]]
        table = format_table(["layer", "kind", "inputs", "outputs", "parameters", "MACs"], rows)
        lines = [
            table,
            f"parameters: {percent(self.params[1], self.params[0])} kept; "
            f"MACs (torch.utils.flop_counter, FLOPs / 2, on the example): {percent(self.macs[1], self.macs[0])} kept",
        ]
        if self.latency_ms:
            lines.append(f"latency: {self.latency_ms[0]:.3g} ms → {self.latency_ms[1]:.3g} ms")
        return "\n".join([*lines, f"largest output difference: {self.max_abs_diff:.3g}"])


def compare_models(dense: nn.Module, small: nn.Module, example_inputs: Any, max_abs_diff: float) -> CompactReport:
    """Measure two models with the same layer names, on the first example; neither changes."""
    probes = [copy_model(model).eval() for model in (dense, small)]
    counts = [count_macs(probe, example_inputs) for probe in probes]
    latency = latencies_ms(probes, example_inputs)
    del probes
    modules = dict(small.named_modules())
    layers = []
    for name, module in dense.named_modules():
        weight, other = getattr(module, "weight", None), modules.get(name)
        channels = [_channels(module), None if other is None else _channels(other)]
        if not isinstance(weight, Tensor) or channels[0] is None or channels[1] is None or other is None:
            continue
        layers.append(
            LayerChange(
                name=name or "model",
                kind=type(module).__name__,
                inputs=(channels[0][0], channels[1][0]),
                outputs=(channels[0][1], channels[1][1]),
                params=(_own_params(module), _own_params(other)),
                macs=(counts[0].get(name, 0), counts[1].get(name, 0)),
            )
        )
    return CompactReport(
        layers,
        (sum(p.numel() for p in dense.parameters()), sum(p.numel() for p in small.parameters())),
        (counts[0].get("", 0), counts[1].get("", 0)),
        (latency[0], latency[1]),
        max_abs_diff,
    )


def _channels(module: nn.Module) -> tuple[int, int] | None:
    for names in (("in_channels", "out_channels"), ("in_features", "out_features")):
        found = [getattr(module, name, None) for name in names]
        if all(isinstance(number, int) for number in found):
            return found[0], found[1]  # type: ignore[return-value]
    return None


def _own_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def _grouped_flops(left: torch.Size, right: torch.Size, *_: Any, **__: Any) -> int:
    """FLOPs of ``torch._grouped_mm``: of rows with their group's matrix, of groups of columns, or of a batch."""
    groups = left[0] if len(left) == len(right) == 3 else 1
    return 2 * groups * left[-2] * left[-1] * right[-1]


# What the counter of PyTorch does not know: the products of a mixture's experts.
_MORE_FLOPS = {torch.ops.aten._grouped_mm: _grouped_flops}


def count_macs(model: nn.Module, example_inputs: Any) -> dict[str, int]:
    """Multiply-accumulates of one run by module name, ``""`` for the whole: FLOPs of ``torch.utils.flop_counter`` / 2.

    It counts matrix products, grouped ones too, convolutions and attention, nothing elementwise; of several examples
    the first. Empty, with a warning, where it fails.

    Example:
        >>> count_macs(nn.Linear(3, 2), torch.zeros(5, 3))[""]
        30
    """
    counter = FlopCounterMode(display=False, custom_mapping=_MORE_FLOPS)
    try:
        with torch.no_grad(), counter:
            run_model(model, copy.deepcopy(first_of(example_inputs)))
    except Exception as error:  # the model runs without it: a report without MACs is better than none
        logger.warning("MACs are not counted: torch.utils.flop_counter: %s: %s", type(error).__name__, error)
        return {}
    counts = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    root = type(model).__name__ + "."
    out = {name.removeprefix(root): count for name, count in counts.items() if name.startswith(root)}
    out[""] = counts.get("Global", 0)
    return out


def latencies_ms(
    models: Sequence[nn.Module], example_inputs: Any, *, budget_s: float = 0.5, most: int = 50
) -> list[float]:
    """Median wall time of one run of each model in milliseconds, the models taking turns.

    Args:
        models: in the mode to measure.
        example_inputs: see :func:`run_model`; of several examples the first counts.
        budget_s: time after which no further round starts, but for the first five (of large models, the first one).
        most: number of rounds.
    """
    inputs = copy.deepcopy(first_of(example_inputs))
    cuda = any(tensor.is_cuda for model in models for tensor in model.parameters())
    times: list[list[float]] = [[] for _ in models]
    stop = float("inf")
    with torch.no_grad():
        for turn in range(most + 1):
            for model, own in zip(models, times, strict=True):
                if cuda:
                    torch.cuda.synchronize()
                start = time.perf_counter()
                run_as_is(model, inputs)
                if cuda:
                    torch.cuda.synchronize()
                if turn > 0:  # the first is a warm-up
                    own.append(1e3 * (time.perf_counter() - start))
            stop = min(stop, time.perf_counter() + budget_s)
            late = time.perf_counter() - stop
            if late > 0 and (turn >= 5 or (turn > 0 and late > 4 * budget_s)):
                break
    return [sorted(own)[len(own) // 2] for own in times]


def plot_training(
    path: str | Path,
    history: Mapping[str, Sequence[Mapping[str, float]]],
    report: CompactReport,
    *,
    milestones: Sequence[int] = (),
    title: str = "",
) -> Path:
    """Draw accuracy and group sparsity over the epochs, and the channels kept per layer, into one PNG.

    Args:
        path: the file to write.
        history: for every run, by its label, one mapping per epoch with ``"accuracy"`` and, where known,
            ``"group_sparsity"``, both in [0, 1].
        report: of the compact model.
        milestones: epochs after which a stage ended, drawn as lines.
        title: of the figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(13, 4), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    accuracy, sparsity, channels = figure.subplots(1, 3)
    for axes, key, name in (
        (accuracy, "accuracy", "Test accuracy (%)"),
        (sparsity, "group_sparsity", "Zero groups (%)"),
    ):
        colors = itertools.cycle(_COLORS)
        lowest = 100.0
        for label, epochs in history.items():
            color = _DENSE_COLOR if label.startswith("dense") else next(colors)
            points = [(index, 100 * epoch[key]) for index, epoch in enumerate(epochs, start=1) if key in epoch]
            if points:
                lowest = min(lowest, *(share for _, share in points))
                axes.plot(*zip(*points, strict=True), label=label, color=color, linewidth=2, clip_on=False)
                axes.plot(*points[-1], "o", color=color, markersize=5, clip_on=False)
        for milestone in milestones:
            axes.axvline(milestone + 0.5, color="0.75", linewidth=1, linestyle=":", zorder=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", title=name, ylim=(10 * (min(lowest, 90.0) // 10), 101))
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if accuracy.lines:
        accuracy.legend(loc="lower right", frameon=False)
    plot_channels(channels, report)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    logger.info("wrote %s", path)
    return path


_DENSE_COLOR = "#868e96"
_COLORS = ("#e8590c", "#1971c2", "#2f9e44")


def plot_channels(axes: Any, report: CompactReport) -> None:
    """Draw the share of the input channels that every layer keeps, with both numbers, on matplotlib axes."""
    position = range(len(report.layers))
    kept = [100 * layer.inputs[1] / layer.inputs[0] if layer.inputs[0] else 0.0 for layer in report.layers]
    size = 9 if len(report.layers) <= 16 else 5
    axes.barh(position, [100] * len(kept), color="0.92", height=0.7)
    axes.barh(position, kept, color=_COLORS[0], height=0.7)
    for y, layer in zip(position, report.layers, strict=True):
        axes.annotate(
            f"{layer.inputs[1]} of {layer.inputs[0]}",
            (102, y),
            va="center",
            fontsize=size,
            annotation_clip=False,
        )
    axes.set_yticks(list(position), [layer.name for layer in report.layers], fontsize=size)
    axes.invert_yaxis()
    axes.set(xlabel="% of the dense layer", title="Input channels kept", xlim=(0, 100))
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
