"""What the proximal optimizers have in common beside the step: the swap of iterates, strengths found for a target.

Imports: :mod:`~sparse_accel.sharding`.
"""
