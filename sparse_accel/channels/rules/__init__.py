"""What operations do to channels, one file per kind of operation; the rules register themselves in ``RULES``.

Imports from above: the leaves of :mod:`sparse_accel.channels` (``call``, ``attributes``, ``graph``, ``slots``).
"""

from sparse_accel.channels.call import RULES

from . import attention, elementwise, linear, shape

__all__ = ["RULES", "attention", "elementwise", "linear", "shape"]
