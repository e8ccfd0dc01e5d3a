"""load_jit(): builds csrc/ with torch.utils.cpp_extension, the same sources as CMakeLists.txt."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_PACKAGE = Path(__file__).resolve().parent
CXX_FLAGS = [
    "-std=c++20",
    "-O3",
    "-fopenmp-simd",
    "-Wno-psabi",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
]
LINK_FLAGS = ["-Wl,--exclude-libs,ALL"] if sys.platform == "linux" else []  # as in CMakeLists.txt


def source_dir() -> Path:
    """The C++ sources: of the checkout that this package belongs to, else those that its wheel carries."""
    for folder in (_PACKAGE.parent / "csrc", _PACKAGE / "csrc"):
        if (folder / "group_layout.h").is_file():
            return folder
    raise RuntimeError(
        f"the C++ sources of sparse_accel are neither in {_PACKAGE.parent / 'csrc'} nor in {_PACKAGE / 'csrc'}: "
        "install the wheel again or work from a checkout"
    )


def sources(with_cuda: bool) -> list[Path]:
    """Files to compile; the globs of CMakeLists.txt."""
    patterns = ["*.cpp", "ops/*.cpp", "cpu/*.cpp", "cpu/*/*.cpp"] + (
        ["cuda/*.cu", "cuda/*_cuda.cpp"] if with_cuda else []
    )
    folder = source_dir()
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def units(with_cuda: bool) -> dict[str, list[Path]]:
    """The translation units by name: few, as most of a small one is headers. Kernels of CUDA, and the CPU's
    of an instruction set, are units of their own."""
    groups: dict[str, list[Path]] = {}
    for path in sources(with_cuda):
        alone = path.suffix == ".cu" or path.stem.endswith(("_default", "_avx2", "_avx512"))
        *folders, _ = path.relative_to(source_dir()).parts
        groups.setdefault(path.name if alone else f"{folders[0] if folders else 'module'}.cpp", []).append(path)
    return groups


def write_unit(folder: Path, name: str, paths: list[Path]) -> Path:
    """The file to compile for a unit: its source, or a new one in `folder` that includes several."""
    if len(paths) == 1:
        return paths[0]
    unit = folder / name
    text = "".join(f'#include "{os.path.relpath(path, folder)}"\n' for path in paths)
    if not unit.exists() or unit.read_text(encoding="utf-8") != text:
        folder.mkdir(parents=True, exist_ok=True)
        unit.write_text(text, encoding="utf-8")
    return unit


def load_jit(*, with_cuda: bool | None = None, name: str = "sparse_accel_jit", **options: Any) -> ModuleType:
    """Compile the C++ sources for this machine (`-march=native`) and return the module, with what `_C` has.

    For trying a change of a kernel without installing; `sparse_accel` itself keeps the module it was built with.
    The first call takes a minute, later ones reuse the build.

    Args:
        with_cuda: compile the CUDA kernels too; None: where torch has CUDA and nvcc is found.
        name: name of the module and of its build folder.
        **options: passed to `torch.utils.cpp_extension.load`: verbose, build_directory, extra_cflags, ...

    Raises:
        RuntimeError: no ninja, no C++ compiler, CUDA asked for and not available, or the compilation failed.
    """
    from torch.utils import cpp_extension

    if not cpp_extension.is_ninja_available():
        raise RuntimeError("load_jit needs ninja: `pip install ninja`, and have it on PATH")
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler.split()[0]) is None:
        raise RuntimeError(
            f"load_jit needs a C++20 compiler and {compiler!r} is not on PATH: install one "
            "(Debian, Ubuntu: `apt install g++`) or name yours in the environment variable CXX"
        )
    with _cuda_home(cpp_extension) as cuda_home:
        if with_cuda is None:
            with_cuda = torch.version.cuda is not None and cuda_home is not None
        if with_cuda and torch.version.cuda is None:
            raise RuntimeError(f"load_jit(with_cuda=True) needs a CUDA build of torch, not {torch.__version__}")
        if with_cuda and cuda_home is None:
            raise RuntimeError("load_jit(with_cuda=True) needs the CUDA toolkit: name its folder in CUDA_HOME")
        defines = ["-DSPARSE_ACCEL_WITH_CUDA"] if with_cuda else []
        root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
        folder = root.absolute() / f"{name}_sources"
        module = cpp_extension.load(
            name=name,
            sources=[str(write_unit(folder, unit, paths)) for unit, paths in units(with_cuda).items()],
            extra_cflags=[*CXX_FLAGS, "-march=native", *defines, *options.pop("extra_cflags", [])],
            extra_cuda_cflags=[
                "-O3",
                "--expt-relaxed-constexpr",
                "--expt-extended-lambda",
                *options.pop("extra_cuda_cflags", []),
            ],
            extra_ldflags=[*LINK_FLAGS, *options.pop("extra_ldflags", [])],
            with_cuda=with_cuda,
            **options,
        )
    assert isinstance(module, ModuleType)
    return module


@contextmanager
def _cuda_home(cpp_extension: ModuleType) -> Iterator[str | None]:
    """Mend CUDA_HOME, which torch takes from the folder of nvcc: wrong where nvcc is a wrapper script."""
    before = cpp_extension.CUDA_HOME
    home = before
    if home and not os.path.exists(os.path.join(home, "include", "cuda_runtime_api.h")):
        home = "/usr/local/cuda" if os.path.isdir("/usr/local/cuda") else None
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if architectures is None and not torch.cuda.is_available():
        os.environ["TORCH_CUDA_ARCH_LIST"] = "8.0;9.0"
    cpp_extension.CUDA_HOME = home  # type: ignore[attr-defined]
    try:
        yield home
    finally:
        cpp_extension.CUDA_HOME = before  # type: ignore[attr-defined]
        if architectures is None:
            os.environ.pop("TORCH_CUDA_ARCH_LIST", None)
