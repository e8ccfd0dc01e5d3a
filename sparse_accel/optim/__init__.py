"""Optimizers that train to structured sparsity, and their schedules."""

from . import lr_scheduler
from .prox_sgd import ProxSGD
from .rmda import RMDA
from .sppam import SPPAM

__all__ = ["RMDA", "SPPAM", "ProxSGD", "lr_scheduler"]
