"""The optimizers' steps as functions of lists of tensors, and the proximal operators in plain tensor ops. Nothing here
knows parameter groups. Imports ops, groups and the leaves."""
