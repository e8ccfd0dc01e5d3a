"""What :func:`sparse_accel.accelerate` measured and chose."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_accel.report import Bars, Column, Contents, Fact, Note, Report, Table, change, share, sizes, written
from sparse_accel.report.left import left_notes, left_tables


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
class AccelerateReport(Report):
    """Dense against sparse layers; a table when printed.

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

    def contents(self) -> Contents:
        """See :class:`~sparse_accel.Report`."""
        columns = [
            Column("layer", "layer"),
            Column("kind", "kind", left=True),
            Column("shape", "shape", sizes),
            Column("inputs", "inputs"),
            Column("zeros", "zeros", share),
            Column("chosen", "chosen", left=True),
            Column("us_dense", "µs dense", written(".0f"), unit="µs"),
            Column("us_now", "µs now", written(".0f"), unit="µs"),
            Column("gain", "gain", lambda gain: f"{gain:.2f}×"),
            Column("bytes", "bytes", change, unit="B", parts=("dense", "now")),
        ]
        rows = [
            [
                *(at.name or "model", at.kind, at.shape, at.inputs, at.sparsity),
                *(at.chosen, at.us["dense"], at.us[at.chosen], at.gain, at.bytes),
            ]
            for at in self.layers
        ]
        before, now = (sum(layer.bytes[i] for layer in self.layers) for i in (0, 1))
        ratio = self.latency_ms[0] / self.latency_ms[1] if self.latency_ms[1] else 1.0
        latency = f"{self.latency_ms[0]:.3g} ms → {self.latency_ms[1]:.3g} ms"
        facts = [
            Fact("latency of the example", latency, f"{ratio:.2f}×"),
            Fact("", f"a layer had to gain {self.min_gain:g}×", joined=True),
            Fact("largest output difference", f"{self.max_abs_diff:.3g}"),
            Fact("bytes of these weights", change((before, now)), plain=""),
        ]
        notes = [Note(layer.note, layer.name or "model") for layer in self.layers if layer.note]
        notes += [*left_notes(self.left), *map(Note, self.notes)]
        total = ("total", *[None] * 8, (before, now))
        tables = [Table(columns, rows, total), *left_tables(self.left)]
        return Contents("Accelerated model", facts, tables, self._charts(), notes=notes)

    def _charts(self) -> list[Bars]:
        """Milliseconds of the whole, microseconds and bytes of each layer, dense and now."""
        names = [layer.name or "model" for layer in self.layers]
        us = {
            "dense": [layer.us["dense"] for layer in self.layers],
            "now": [layer.us[layer.chosen] for layer in self.layers],
        }
        told = [f"{layer.us['dense']:.0f} → {layer.us[layer.chosen]:.0f}, {layer.chosen}" for layer in self.layers]
        kept = [100 * now / dense if dense else 0.0 for dense, now in (layer.bytes for layer in self.layers)]
        texts = [change(layer.bytes) for layer in self.layers]
        return [
            Bars("Latency per layer", names, us, told, unit="µs"),
            Bars("Bytes of the weight", names, {"now": kept}, texts, whole=max(100.0, *kept, 0.0), unit="% of dense"),
            Bars("Latency of the example", ["dense", "now"], {"time": list(self.latency_ms)}, unit="ms"),
        ]
