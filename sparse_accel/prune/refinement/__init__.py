"""A pruned model fitted to the dense one on inputs without labels: windows, outputs, a short distillation.

Imports: :mod:`~sparse_accel.calibration`, :mod:`~sparse_accel.channels`, :mod:`~sparse_accel.removal`; no other pruner.
"""
