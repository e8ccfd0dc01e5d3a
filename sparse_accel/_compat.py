"""Checks at import: each way in which the compiled module cannot work ends in a message that says what to do."""

from __future__ import annotations

import importlib
import importlib.util
import re
import warnings
from pathlib import Path
from types import ModuleType

# The releases of torch under which the whole suite has passed: the first is that of `dependencies` in pyproject.toml.
OLDEST, NEWEST = (2, 11), (2, 15)

REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall"
_PACKAGE = Path(__file__).resolve().parent


class UntestedTorchWarning(UserWarning):
    """The installed torch is newer than the newest that this version of sparse_accel was tested with."""


def check() -> None:
    """Raise ImportError if torch or the compiled module is missing or the two do not fit together.

    A torch beyond the tested releases gets an :class:`UntestedTorchWarning`.
    """
    build = _import_build_info()
    torch = _import_torch()
    _check_torch(torch.__version__, torch.version.cuda, build)
    try:
        importlib.import_module("sparse_accel._C")
    except ModuleNotFoundError as error:
        raise ImportError(_not_built()) from error
    except ImportError as error:  # undefined symbol, missing shared library
        raise ImportError(
            f"sparse_accel's compiled module does not load: {error}. It was built with the headers of torch "
            f"{build.torch_version} for torch {_shown(OLDEST)} and later, and torch {torch.__version__} is installed. "
            f"Install it again: {_rebuild_command()}"
        ) from error
    if _release(torch.__version__) > NEWEST:
        warnings.warn(
            f"sparse_accel was tested with torch {_shown(OLDEST)} to {_shown(NEWEST)}, and torch {torch.__version__} "
            "is installed. It may well work: run the test suite, or look for a newer sparse_accel.",
            UntestedTorchWarning,
            stacklevel=3,  # the line that imports sparse_accel
        )


def _import_build_info() -> ModuleType:
    try:
        return importlib.import_module("sparse_accel._build_info")
    except ModuleNotFoundError as error:
        raise ImportError(_not_built()) from error


def _import_torch() -> ModuleType:
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            "sparse_accel needs torch, which is not installed: see https://pytorch.org/get-started"
        ) from error


def _check_torch(running: str, running_cuda: str | None, build: ModuleType) -> None:
    # Any release from then on will do: the module asks torch for stable C functions only (csrc/torch_runtime.cpp).
    if _release(running) < OLDEST:
        raise ImportError(
            f"sparse_accel needs torch {_shown(OLDEST)} or later, but torch {running} is installed: "
            f"`pip install 'torch>={_shown(OLDEST)}'`"
        )
    if build.with_cuda and (running_cuda or "").split(".")[0] != build.torch_cuda.split(".")[0]:
        raise ImportError(
            f"sparse_accel's kernels were built for CUDA {build.torch_cuda}, but the installed torch {running} has "
            f"{'CUDA ' + running_cuda if running_cuda else 'no CUDA'}. Rebuild them for this one: {_rebuild_command()}"
        )


def _release(version: str) -> tuple[int, ...]:
    """(2, 15) of "2.15.0a0+git123"; () of what is no version, which is older than all."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return tuple(int(part) for part in found.groups()) if found else ()


def _shown(release: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in release)


def _is_source_tree() -> bool:
    return (_PACKAGE.parent / "CMakeLists.txt").is_file()


def _rebuild_command() -> str:
    if _is_source_tree():
        return f"`{REBUILD} {_PACKAGE.parent}`"
    return f"`{REBUILD} .` in a checkout of sparse_accel"


def _not_built() -> str:
    if _is_source_tree():
        return (
            f"sparse_accel was imported from its source tree {_PACKAGE.parent}, which has no compiled module for this "
            "Python. Either build it in place (`make build`, or `pip install --no-build-isolation -e .`), or, if "
            "sparse_accel is installed, run Python from another folder: the source folder hides the installed package."
        )
    return (
        f"sparse_accel in {_PACKAGE} has no compiled module for this Python; the installation is incomplete or was "
        f"made for another version of Python. Install it again: {_rebuild_command()}"
    )
