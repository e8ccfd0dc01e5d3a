"""Sparse recovery: smooth functions minimized over vectors with at most k nonzeros.

:func:`solve` has five methods, from hard thresholding to curvature: k-IHT, its normalized form, hard thresholding
pursuit, and I-OBS, the optimal brain surgeon iterated, with and without its choice of support by damage. Gradient and
Hessian are always those of the same function: a Newton step is whole, and recovers a sparse least squares solution at
once.

Sources: Wu et al., "The iterative optimal brain surgeon", NeurIPS 2024 (arXiv 2408.17163); Hassibi and Stork, "Second
order derivatives for network pruning", NeurIPS 1992; Blumensath and Davies, "Iterative hard thresholding for compressed
sensing", 2009, and "Normalized iterative hard thresholding", 2010; Foucart, "Hard thresholding pursuit", 2011; for the
Fisher matrix Singh and Alistarh, "WoodFisher", NeurIPS 2020.

Imports: :mod:`~sparse_accel.ops`.
"""

from .autograd import Problem
from .linear import LeastSquares, Logistic
from .options import METHODS
from .result import History, Recovery, Stopping
from .solver import solve

__all__ = ["METHODS", "History", "LeastSquares", "Logistic", "Problem", "Recovery", "Stopping", "solve"]
