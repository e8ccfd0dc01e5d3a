"""What can be removed from a model, and the removal: channel graph, liveness, surgery.

The channels are followed by an analysis of our own, :mod:`~sparse_accel.prune.trace`. The dependency graph of
Torch-Pruning ties the same channels (the tests compare the two), but takes an operation that it does not know for an
elementwise one and knows nothing of values, of zero padding or of who reads what: enough to prune with a loss, not to
prove that outputs stay the same.
"""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> module of this package; imported at first use, because compact() needs this package's leaves.
_PUBLIC: dict[str, str] = {
    "Calibration": "calibration",
    "Consumer": "widths",
    "CurvatureIHT": "curvature_iht",
    "CurvatureIHTReport": "curvature_iht_report",
    "CurvatureIHTResult": "curvature_iht_result",
    "GramSelection": "gram",
    "GroupSparsity": "targets",
    "ISpaSP": "structured",
    "ISpaSPSelection": "ispasp",
    "LayerInfo": "layerwise",
    "LayerReport": "curvature_iht_report",
    "Masks": "masks",
    "PruneError": "structured",
    "RemovalResult": "remove",
    "Rows": "targets",
    "StructuredReport": "structured_report",
    "StructuredResult": "structured_report",
    "Width": "widths",
    "Widths": "widths",
    "batchnorm_affine": "ispasp",
    "energy_select": "gram",
    "export_sparse": "curvature_iht_result",
    "find_widths": "remove",
    "gram_cosamp": "gram",
    "gram_obs": "gram",
    "ispasp_select": "ispasp",
    "layerwise_solve": "layerwise",
    "load_sparse": "curvature_iht_result",
    "refit": "gram",
    "remove_units": "remove",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
