"""What the proximal optimizers have in common: the swap of iterates, strengths found for a target, constraints.

Imports: :mod:`~sparse_accel.sharding`, :mod:`~sparse_accel.penalties`, :mod:`~sparse_accel.ops`.
"""
