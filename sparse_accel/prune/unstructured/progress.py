"""The finished layers of a run on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sparse_accel.calibration.batches import fingerprint
from sparse_accel.prune.records.progress import Progress as Progress
from sparse_accel.prune.unstructured.layers import Layer
from sparse_accel.prune.unstructured.report import LayerReport
from sparse_accel.removal.files import Field


def record_of(settings: Any, layers: Sequence[Layer], first: Any) -> dict[str, Any]:
    """What has to be the same for a run to go on.

    Args:
        settings: the :class:`~sparse_accel.prune.CurvatureIHT`.
        layers: that it prunes.
        first: batch of the data.
    """
    options, padding = settings.options, settings.padding
    return {
        "sparsity": repr(settings.sparsity),
        "layers": {layer.name: [repr(layer.target), list(layer.weight.shape)] for layer in layers},
        "allocation": settings.allocation,
        "method": options.method,
        "iterations": options.iterations,
        "seed": options.seed,
        "dtype": str(options.dtype),
        "solver": {key: repr(value) for key, value in sorted(options.extra.items())},
        "refine": settings.refine if isinstance(settings.refine, int) else settings.refine.to_plain(),
        "padding": padding if isinstance(padding, (str, type(None))) else repr(padding),
        "weights": fingerprint([layer.weight for layer in layers]),
        "data": fingerprint(first),
    }


def reports_of(notes: Field) -> list[LayerReport]:
    """The layer reports in a step's notes."""
    return [LayerReport.from_field(entry) for entry in notes["layers"].entries()]


def notes_of(reports: list[LayerReport]) -> dict[str, Any]:
    """The inverse of :func:`reports_of`."""
    return {"layers": [asdict(report) for report in reports]}
