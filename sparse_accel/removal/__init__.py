"""Physical removal of channels, with optimizer state that follows, and checkpoints of what is left.

Imports: :mod:`~sparse_accel.channels`, :mod:`~sparse_accel.report`, :mod:`~sparse_accel.penalties` (the names of an
optimizer's penalties) and what lies below them.
"""

from sparse_accel.removal import (
    compact_checkpoint as compact_checkpoint,  # a kind of result that save() and load() know
)
