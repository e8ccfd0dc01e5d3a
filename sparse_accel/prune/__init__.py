"""What can be removed from a model, and the removal: channel graph, liveness, surgery.

The channels are followed by an analysis of our own, :mod:`~sparse_accel.prune.trace`. The dependency graph of
Torch-Pruning ties the same channels (the tests compare the two), but takes an operation that it does not know for an
elementwise one and knows nothing of values, of zero padding or of who reads what: enough to prune with a loss, not to
prove that outputs stay the same.
"""
