"""Pruning of trained models on calibration data: ISpaSP (units), CurvatureIHT (weights), and their parts.

Imports: :mod:`~sparse_accel.removal`, :mod:`~sparse_accel.calibration`, :mod:`~sparse_accel.report` and what lies below
them. ``select`` works on plain arrays, ``layerwise`` on one layer, ``structured`` and ``unstructured`` on networks,
``refinement`` on what comes of these.
"""

from sparse_accel.calibration.data import Calibration, token_windows
from sparse_accel.channels.widths import Consumer, Width, Widths
from sparse_accel.prune.layerwise.solve import LayerInfo, layerwise_solve
from sparse_accel.prune.layerwise.targets import BlockSparsity, GroupSparsity, Rows
from sparse_accel.prune.refinement.options import RefineReport
from sparse_accel.prune.refinement.refine import Refined, refine
from sparse_accel.prune.select.gram import GramSelection, energy_select, gram_cosamp, gram_obs, refit
from sparse_accel.prune.select.ispasp import ISpaSPSelection, batchnorm_affine, ispasp_select
from sparse_accel.prune.structured.pruner import ISpaSP
from sparse_accel.prune.structured.report import StructuredReport, StructuredResult
from sparse_accel.prune.structured.request import PruneError
from sparse_accel.prune.unstructured.masks import Masks
from sparse_accel.prune.unstructured.pruner import CurvatureIHT
from sparse_accel.prune.unstructured.report import CurvatureIHTReport, LayerReport
from sparse_accel.prune.unstructured.result import CurvatureIHTResult, export_sparse, load_sparse
from sparse_accel.removal.attention import OpenAttention, open_attention
from sparse_accel.removal.remove import RemovalResult, find_widths, remove_units

__all__ = [
    "BlockSparsity",
    "Calibration",
    "Consumer",
    "CurvatureIHT",
    "CurvatureIHTReport",
    "CurvatureIHTResult",
    "GramSelection",
    "GroupSparsity",
    "ISpaSP",
    "ISpaSPSelection",
    "LayerInfo",
    "LayerReport",
    "Masks",
    "OpenAttention",
    "PruneError",
    "RefineReport",
    "Refined",
    "RemovalResult",
    "Rows",
    "StructuredReport",
    "StructuredResult",
    "Width",
    "Widths",
    "batchnorm_affine",
    "energy_select",
    "export_sparse",
    "find_widths",
    "gram_cosamp",
    "gram_obs",
    "ispasp_select",
    "layerwise_solve",
    "load_sparse",
    "open_attention",
    "refine",
    "refit",
    "remove_units",
    "token_windows",
]
