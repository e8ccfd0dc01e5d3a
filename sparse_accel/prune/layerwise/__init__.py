"""One layer's weights made sparse under its input's second moments: targets, solver, baselines.

Imports: :mod:`~sparse_accel.ops`, :mod:`~sparse_accel.prune.select`.
"""
