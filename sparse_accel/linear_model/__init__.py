"""scikit-learn estimators: linear models by exact implicit steps, and with exactly k coefficients.

Needs scikit-learn (``pip install sparse-accel[sklearn]``); imported on first use of ``sparse_accel.linear_model``.

Imports: :mod:`~sparse_accel.optim`, :mod:`~sparse_accel.ops`, :mod:`~sparse_accel.sparse_recovery`,
:mod:`~sparse_accel.report`.
"""

try:
    from sklearn.utils.validation import validate_data as _  # noqa: F401
except ImportError as error:
    raise ImportError(
        "sparse_accel.linear_model needs scikit-learn 1.6 or newer: pip install 'sparse-accel[sklearn]'"
    ) from error

from .path import SparsePath, sparse_path
from .sparse import SparseLinearRegression, SparseLogisticRegression
from .sppam import SPPAMClassifier, SPPAMPoissonRegressor, SPPAMRegressor

__all__ = [
    "SPPAMClassifier",
    "SPPAMPoissonRegressor",
    "SPPAMRegressor",
    "SparseLinearRegression",
    "SparseLogisticRegression",
    "SparsePath",
    "sparse_path",
]
