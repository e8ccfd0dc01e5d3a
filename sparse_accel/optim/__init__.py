"""Optimizers that train to structured sparsity, and their schedules.

Imports: :mod:`~sparse_accel.penalties`, :mod:`~sparse_accel.ops`, :mod:`~sparse_accel.groups`.
"""

from . import lr_scheduler
from .common.critical import max_strength
from .prox_adamw import ProxAdamW
from .prox_sgd import ProxSGD
from .ramda import RAMDA
from .rmda import RMDA
from .sppam import SPPAM

__all__ = ["RAMDA", "RMDA", "SPPAM", "ProxAdamW", "ProxSGD", "lr_scheduler", "max_strength"]
