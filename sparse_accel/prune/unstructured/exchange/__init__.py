"""What goes and what comes in training that is sparse throughout, on one process and on many.

Imports: the masks of its parent, :mod:`~sparse_accel.groups`, :mod:`~sparse_accel.ops`, :mod:`~sparse_accel.sharding`.
"""
