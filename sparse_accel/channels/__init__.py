"""Which channel every element of a model belongs to, and who reads it: call, trace, slots, graph, liveness, widths.

Imports ``_modes`` alone of this package.

The analysis is our own. The dependency graph of Torch-Pruning ties the same channels (the tests compare the two), but
takes an operation that it does not know for an elementwise one and knows nothing of values, of zero padding or of who
reads what: enough to prune with a loss, not to prove that outputs stay the same.
"""
