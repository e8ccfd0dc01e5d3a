"""Sparse weights that run faster: layers whose kept weights alone are stored and read, chosen by the clock.

Imports: :mod:`~sparse_accel.removal` (checkpoints), :mod:`~sparse_accel.report`, :mod:`~sparse_accel.channels`,
:mod:`~sparse_accel.ops` and what lies below them.
"""

from sparse_accel.acceleration import checkpoint as checkpoint  # a kind of result that save() and load() know
