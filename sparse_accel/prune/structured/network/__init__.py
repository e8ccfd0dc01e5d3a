"""A run over the widths of a network: how many units each keeps, one after the other, and its record on disk.

Imports: its parent, which it stands above but for :class:`~sparse_accel.prune.ISpaSP`, and what that imports.
"""
