"""One report of every kind, with names that no format may take for its own signs."""

from __future__ import annotations

from sparse_accel.acceleration.report import AccelerateReport, LayerSpeed
from sparse_accel.callbacks import SparsityHistory
from sparse_accel.diagnostics.sparsity import SparsityReport, TensorSparsity
from sparse_accel.prune import CurvatureIHTReport, LayerReport, RefineReport, StructuredReport
from sparse_accel.prune.structured.report import WidthChange
from sparse_accel.report import CompactReport, LayerChange, Report

HOSTILE = "<script>alert('x')</script>&[bold]|$_{x}$`\"'\\*"


def reports(name: str = HOSTILE) -> dict[str, Report]:
    """By kind; ``name`` is that of a layer, and stands in reasons and notes."""
    layers = [
        LayerChange(name, "Conv2d", (3, 3), (16, 8), (432, 216), (100_000, 50_000)),
        LayerChange("fc", "Linear", (16, 8), (10, 10), (170, 90), (160, 80)),
    ]
    compact = CompactReport(layers, (602, 306), (100_160, 50_080), (1.2345, 0.61), 1.2e-7)
    refine = RefineReport("24 of 192", {0: 0.5, 20: 0.3}, 20, 0.29, 60, 0.01, ("a",), "held", 3.21, 0, (name,))
    widths = [
        WidthChange(name, "channels", (64, 32), ("conv2",), "dense+relu", (0.5, 0.2), 1.234),
        WidthChange("heads", "heads", (8, 4), ("o",), "", None, 0.1),
    ]
    iht = [
        LayerReport(name, "Linear", (64, 32), 1024, 0.0123, 0.5, 1e-2, 640, ("fc1",), 3),
        LayerReport("experts", "Mix", (4, 8, 8), 100, 0.3, 0.5, 1e-2, 640, idle=(1, 3)),
    ]
    speeds = [
        LayerSpeed(name, "Linear", (512, 256), 0.7, 1, 4, {"dense": 120.0, "csr": 60.0}, "csr", (524_288, 180_000)),
        LayerSpeed("", "Linear", (9, 9), 0.7, 1, 4, {"dense": 12.0}, "dense", (324, 324), "csr cannot be tried: no"),
    ]
    weights = [
        TensorSparsity(name, (4, 2), 2, 1, 8, 4, 5),
        TensorSparsity("b.weight", (1000, 20), 20, 15, 20_000, 15_000, 16_000),
    ]
    history = SparsityHistory(None)  # type: ignore[arg-type]
    history.rows = [
        {"step": step, "groups": 4, "zero_groups": step, "group_sparsity": step / 4}
        | {"weighted_group_sparsity": step / 8, "strength": 0.1 * step, "target": None, name: 1 / (step + 1)}
        for step in range(4)
    ]
    return {
        "compact": compact,
        "refine": refine,
        "structured": StructuredReport(widths, compact, 12.3, 3_000_000, [f"left whole: {name}"], refine),
        "iht": CurvatureIHTReport(
            iht, "iht", 3.3, 5_000_000, {name: "skip", "b": "idle"}, [0.5, 0.3], 1, {name: 0.25, "b": 0.1}, 10_000
        ),
        "accelerate": AccelerateReport(speeds, {name: "the example does not call it"}, 1.1, (2.0, 1.5), 1e-6, ["so"]),
        "sparsity": SparsityReport("input", weights, {name: 64}),
        "history": history,
    }
