"""CurvatureIHT: weights of whole networks made sparse, layer by layer, with masks that last.

Imports: :mod:`~sparse_accel.prune.layerwise`, :mod:`~sparse_accel.calibration`, :mod:`~sparse_accel.removal` (files).
"""
