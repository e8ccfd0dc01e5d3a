"""Structured sparsity for PyTorch: train with group penalties, remove what became zero, keep the speed."""

from . import _compat

_compat.check()

from . import _build_info, callbacks, ops, progress, prune, sparse_recovery, sppam
from ._info import BuildInfo, build_info
from ._jit import load_jit
from .acceleration.accelerate import AccelerateResult, accelerate, densify
from .channels.runs import Examples
from .diagnostics import SparsityReport, sparsity
from .groups import CoupledGroups, Grouping, GroupLayout, group_layout, param_groups
from .mapped import map_weights
from .ops import glm_epoch, glm_prox, masked_cg, topk_threshold_
from .optim import RAMDA, RMDA, SPPAM, ProxAdamW, ProxSGD, lr_scheduler, max_strength
from .optim.common.constraints import Binary, Box, NonNegative
from .penalties import L1, GroupL0, GroupLasso, NuclearNorm, Penalty, SparseGroupLasso, Sum, register_penalty
from .prune.layerwise.targets import BlockSparsity, GroupSparsity, Rows
from .prune.unstructured.rigl import RigL
from .removal.checkpoint import load, save
from .removal.compact import CompactError, CompactResult, OutputMismatchError, UnsupportedModelError, compact
from .removal.coupling.coupled import coupled_groups
from .removal.files import CheckpointError
from .removal.optimizer_checkpoint import load_optimizer
from .report import Report

__version__ = _build_info.version
__all__ = [
    "L1",
    "RAMDA",
    "RMDA",
    "SPPAM",
    "AccelerateResult",
    "Binary",
    "BlockSparsity",
    "Box",
    "BuildInfo",
    "CheckpointError",
    "CompactError",
    "CompactResult",
    "CoupledGroups",
    "Examples",
    "GroupL0",
    "GroupLasso",
    "GroupLayout",
    "GroupSparsity",
    "Grouping",
    "NonNegative",
    "NuclearNorm",
    "OutputMismatchError",
    "Penalty",
    "ProxAdamW",
    "ProxSGD",
    "Report",
    "RigL",
    "Rows",
    "SparseGroupLasso",
    "SparsityReport",
    "Sum",
    "UnsupportedModelError",
    "__version__",
    "accelerate",
    "build_info",
    "callbacks",
    "compact",
    "coupled_groups",
    "densify",
    "glm_epoch",
    "glm_prox",
    "group_layout",
    "load",
    "load_jit",
    "load_optimizer",
    "lr_scheduler",
    "map_weights",
    "masked_cg",
    "max_strength",
    "ops",
    "param_groups",
    "progress",
    "prune",
    "register_penalty",
    "save",
    "sparse_recovery",
    "sparsity",
    "sppam",
    "topk_threshold_",
]


def __getattr__(name: str) -> object:
    """``linear_model`` on first use: it needs scikit-learn."""
    if name == "linear_model":
        import importlib

        return importlib.import_module(".linear_model", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
