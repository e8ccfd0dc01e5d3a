"""Finished steps of runs on disk.

Imports: :mod:`~sparse_accel.removal`, :mod:`~sparse_accel.calibration`.
"""
