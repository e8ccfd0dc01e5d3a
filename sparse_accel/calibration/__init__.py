"""Passes over calibration data: batches, second moments, ranks, and the replay of a model's finished front.

Imports: :mod:`~sparse_accel.channels` (how a model is run) and :mod:`~sparse_accel.ops`.
"""
