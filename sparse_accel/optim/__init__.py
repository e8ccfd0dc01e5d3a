"""Optimizers that train to structured sparsity, and their schedules."""

from . import lr_scheduler
from .prox_sgd import ProxSGD, prox_sgd
from .rmda import RMDA, rmda

__all__ = ["RMDA", "ProxSGD", "lr_scheduler", "prox_sgd", "rmda"]
