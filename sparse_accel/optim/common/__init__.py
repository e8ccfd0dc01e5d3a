"""What the proximal optimizers have in common beside the step: the swap to the proximal iterate and back.

Imports: :mod:`~sparse_accel.sharding`.
"""
