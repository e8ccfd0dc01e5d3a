"""Structured sparsity for PyTorch: train with group penalties, remove what became zero."""

from . import _compat

_compat.check()

from . import _build_info
from ._info import BuildInfo, build_info
from ._jit import load_jit

__version__ = _build_info.version
__all__ = ["BuildInfo", "__version__", "build_info", "load_jit"]
