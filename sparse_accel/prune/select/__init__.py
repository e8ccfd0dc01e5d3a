"""Which units to keep, decided on plain arrays: sparse signal recovery and elimination in Gram matrices.

Imports: :mod:`~sparse_accel.ops`, :mod:`~sparse_accel.calibration` (columns of layer inputs), no model.
"""
