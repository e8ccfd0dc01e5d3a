"""What :func:`sparse_accel.accelerate` measured and chose."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sparse_accel.report import format_table


@dataclass(frozen=True)
class LayerSpeed:
    """One layer.

    Attributes:
        name: of the module.
        kind: its class.
        shape: outputs, inputs.
        sparsity: share of its weights that are zero.
        calls: how often one run of the example calls it.
        inputs: rows of the inputs of its largest call.
        us: median microseconds in one run of the example, by form; ``"dense"`` is always there. Of the others by
            their median share of the dense time of the same round.
        chosen: the form that it has now.
        bytes: of the weight, dense and now.
        note: why it stayed dense, or what could not be tried.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    sparsity: float
    calls: int
    inputs: int
    us: dict[str, float]
    chosen: str
    bytes: tuple[int, int]
    note: str = ""

    @property
    def gain(self) -> float:
        """Dense time over the time now."""
        return self.us["dense"] / self.us[self.chosen]


@dataclass(frozen=True)
class AccelerateReport:
    """Dense against sparse layers.

    Attributes:
        layers: every layer that was timed.
        left: names of those that were not, with the reason.
        min_gain: what a layer had to gain.
        latency_ms: median time of one run of the example, dense and now.
        max_abs_diff: largest difference of the outputs on the example.
        notes: what else there is to say.
    """

    layers: list[LayerSpeed]
    left: dict[str, str]
    min_gain: float
    latency_ms: tuple[float, float]
    max_abs_diff: float
    notes: list[str]

    def to_plain(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        return asdict(self)

    def __str__(self) -> str:
        rows: list[list[Any]] = [
            [
                layer.name or "model",
                layer.kind,
                "×".join(map(str, layer.shape)),
                layer.inputs,
                f"{100 * layer.sparsity:.1f} %",
                layer.chosen,
                f"{layer.us['dense']:.0f}",
                f"{layer.us[layer.chosen]:.0f}",
                f"{layer.gain:.2f}×",
                f"{layer.bytes[0]:,} → {layer.bytes[1]:,}",
            ]
            for layer in self.layers
        ]
        before, now = (sum(layer.bytes[i] for layer in self.layers) for i in (0, 1))
        rows += [[None], ["total", "", "", "", "", "", "", "", "", f"{before:,} → {now:,}"]]
        headers = ["layer", "kind", "shape", "inputs", "zeros", "chosen", "µs dense", "µs now", "gain", "bytes"]
        lines = [format_table(headers, rows)]
        ratio = self.latency_ms[0] / self.latency_ms[1] if self.latency_ms[1] else 1.0
        lines.append(
            f"latency of the example: {self.latency_ms[0]:.3g} ms → {self.latency_ms[1]:.3g} ms ({ratio:.2f}×); "
            f"a layer had to gain {self.min_gain:g}×"
        )
        lines.append(f"largest output difference: {self.max_abs_diff:.3g}")
        lines += [f"{layer.name or 'model'}: {layer.note}" for layer in self.layers if layer.note]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            reasons.setdefault(reason, []).append(name or "model")
        for reason, names in reasons.items():
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            lines.append(f"left dense: {', '.join(names[:8])}{more}: {reason}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])
