"""What training leaves behind, measured on models as they are.

Imports: :mod:`~sparse_accel.groups`, :mod:`~sparse_accel.report`, and to drop units
:mod:`~sparse_accel.channels`, :mod:`~sparse_accel.removal`, :mod:`~sparse_accel.calibration`.
"""

from .dropout import DropoutReport, LayerDropout, dropout_stability
from .path import low_loss_path
from .path_report import LowLossPath
from .sparsity import SparsityReport, TensorSparsity, sparsity

__all__ = [
    "DropoutReport",
    "LayerDropout",
    "LowLossPath",
    "SparsityReport",
    "TensorSparsity",
    "dropout_stability",
    "low_loss_path",
    "sparsity",
]
