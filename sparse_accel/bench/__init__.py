"""``sparse-accel bench``: every op and optimizer beside its plain twin, PyTorch's own, the same compiled, and a copy.

``case`` is what is measured and what comes out, ``cases`` make them, ``measure`` and ``timer`` run them, ``command`` is
the command line; ``compare``, ``plot`` and ``report`` read its results. Imports: what is timed, and
:mod:`~sparse_accel.report`.
"""
