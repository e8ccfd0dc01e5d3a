"""Groups of weights: how they lie in memory (``layouts``), which a model's parameters have (``models``), and those over
several parameters (``coupled``).

Imports: nothing of this package.
"""

from sparse_accel.groups.coupled import CoupledGroups, CoupledWidth
from sparse_accel.groups.layouts import BY, Grouping, GroupLayout, group_layout, is_dense, layout_of
from sparse_accel.groups.models import (
    module_grouping,
    named_groupings,
    param_groups,
    parameter_grouping,
    stacked_layout,
)

__all__ = [
    "BY",
    "CoupledGroups",
    "CoupledWidth",
    "GroupLayout",
    "Grouping",
    "group_layout",
    "is_dense",
    "layout_of",
    "module_grouping",
    "named_groupings",
    "param_groups",
    "parameter_grouping",
    "stacked_layout",
]
