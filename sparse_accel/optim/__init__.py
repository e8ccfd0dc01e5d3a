"""Optimizers that train to structured sparsity, and their schedules.

Imports: :mod:`~sparse_accel.penalties`, :mod:`~sparse_accel.ops`, :mod:`~sparse_accel.groups`.
"""

from . import lr_scheduler
from .prox_sgd import ProxSGD
from .rmda import RMDA
from .sppam import SPPAM

__all__ = ["RMDA", "SPPAM", "ProxSGD", "lr_scheduler"]
