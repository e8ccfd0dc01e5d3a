"""ISpaSP: units of whole networks removed, front to back, with refits.

Imports: :mod:`~sparse_accel.prune.select`, :mod:`~sparse_accel.calibration`, :mod:`~sparse_accel.removal`.
"""
