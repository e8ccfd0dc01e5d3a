"""Optimizers that train to structured sparsity, and their schedules."""

from . import lr_scheduler
from .prox_sgd import ProxSGD
from .rmda import RMDA

__all__ = ["RMDA", "ProxSGD", "lr_scheduler"]
