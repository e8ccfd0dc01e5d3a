"""What calls did, in every format: tables, data, pictures, pages. A report says what it has to say once, in
``contents``.

Imports: :mod:`~sparse_accel.channels` (runs of a model) and leaves; matplotlib, pandas and rich where they are used.
"""

from .base import Report
from .compact import CompactReport, LayerChange, compare_models
from .contents import Bars, Column, Contents, Fact, Lines, Note, Table, change, number, percent, share, sizes, written
from .costs import count_macs, latencies_ms
from .text import format_table
from .training import plot_channels, plot_training

__all__ = [
    "Bars",
    "Column",
    "CompactReport",
    "Contents",
    "Fact",
    "LayerChange",
    "Lines",
    "Note",
    "Report",
    "Table",
    "change",
    "compare_models",
    "count_macs",
    "format_table",
    "latencies_ms",
    "number",
    "percent",
    "plot_channels",
    "plot_training",
    "share",
    "sizes",
    "written",
]
