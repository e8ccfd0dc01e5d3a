"""The finished front of a model, run once: its outputs, in memory or in files, stand in for it in later passes.

Imports: the rest of :mod:`~sparse_accel.calibration`, :mod:`~sparse_accel.channels`.
"""
