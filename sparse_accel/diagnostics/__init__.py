"""What training leaves behind, measured on models as they are.

Imports: :mod:`~sparse_accel.groups`, :mod:`~sparse_accel.report`.
"""

from .sparsity import SparsityReport, sparsity

__all__ = ["SparsityReport", "sparsity"]
