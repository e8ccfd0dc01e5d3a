"""What can be removed from a model, and the removal: channel graph, liveness, surgery."""
