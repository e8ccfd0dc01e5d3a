"""Penalties: a value and a proximal operator, and nothing that an optimizer would have to ask about.

Imports: :mod:`~sparse_accel.ops`, :mod:`~sparse_accel.groups`, :mod:`~sparse_accel.sharding`.
"""

from .base import Groupings, Penalty, Stage, cached_layout, check_strengths, dense_view
from .combined import SparseGroupLasso, Sum
from .declared import register_penalty
from .group import L1, GroupL0, GroupLasso
from .nuclear import NuclearNorm
from .plain import penalty_from_plain, register

__all__ = [
    "L1",
    "GroupL0",
    "GroupLasso",
    "Groupings",
    "NuclearNorm",
    "Penalty",
    "SparseGroupLasso",
    "Stage",
    "Sum",
    "cached_layout",
    "check_strengths",
    "dense_view",
    "penalty_from_plain",
    "register",
    "register_penalty",
]
