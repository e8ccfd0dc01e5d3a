"""Builds the CUDA backend for the CPU: kernels under the emulator, the ATen side on CPU tensors.

``load()`` returns a module with the functions of ``sparse_accel._C`` that runs every op through the CUDA kernels,
and ``set_order("forward" | "reverse" | "random", seed)`` for the order in which emulated threads and blocks run.
The emulator's errors (divergent barriers, deadlocks, bad launches) are RuntimeErrors.

Needs a C++ compiler and torch; no CUDA toolkit, no GPU.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "cuda_emulated"
JOBS = 2
MODULE = "_C_emulated"
EMULATED = ["-DSPARSE_ACCEL_EMULATED", f"-I{HERE}", f"-I{CSRC / 'cuda'}"]


def compiler() -> list[str]:
    """The C++ compiler's command; RuntimeError with advice if there is none."""
    command = os.environ.get("CXX", "c++").split()
    if shutil.which(command[0]) is None:
        raise RuntimeError(
            f"the emulator's tests need a C++ compiler and {command[0]!r} is not on PATH: install one "
            "(Debian, Ubuntu: `apt install g++`) or name yours in the environment variable CXX"
        )
    return command


def run_compiler(arguments: Iterable[object]) -> None:
    """Run the compiler; RuntimeError with its output if it fails."""
    command = [*compiler(), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def digest(*parts: object) -> str:
    """A short hash of texts and of files' contents."""
    out = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else str(part).encode()
        out.update(len(data).to_bytes(8, "little") + data)
    return out.hexdigest()[:16]


def headers() -> list[Path]:
    """Every header that an emulated source may include."""
    found = [path for pattern in ("*.h", "*.cuh") for folder in (CSRC, HERE) for path in folder.rglob(pattern)]
    return sorted(found)


def compile_object(source: Path, flags: list[str], folder: Path, extra: str = "") -> Path:
    """Compile one source, unless an object of the same sources and flags is there already."""
    key = digest(source, " ".join(flags), extra, " ".join(compiler()), *headers())
    output = folder / f"{source.name}.{key}.o"
    if not output.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f"{source.name}.*.o"):
            stale.unlink(missing_ok=True)
        part = output.with_suffix(f".{os.getpid()}.part")
        run_compiler([*flags, "-c", "-x", "c++", source, "-o", part])
        part.replace(output)
    return output


def kernel_sources() -> list[Path]:
    """The files that need no torch."""
    return sorted((CSRC / "cuda").glob("*.cu"))


def torch_sources() -> list[Path]:
    """The ATen side, the checks in front of it, the bindings, and what those link to."""
    patterns = ("*.cpp", "ops/*.cpp", "cpu/*.cpp", "cuda/*_cuda.cpp")
    return sorted(path for pattern in patterns for path in CSRC.glob(pattern)) + [HERE / "order_bindings.cpp"]


def build() -> Path:
    """Compile and link; returns the shared library."""
    include = Path(torch.__file__).parent / "include"
    lib = include.parent / "lib"
    common = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", *EMULATED]
    with_torch = [
        *common,
        "-O0",
        "-w",  # the main build reports
        "-fopenmp",
        "-DSPARSE_ACCEL_WITH_CUDA",
        f"-DTORCH_EXTENSION_NAME={MODULE}",
        *(f"-isystem{path}" for path in (include, include / "torch/csrc/api/include", sysconfig.get_path("include"))),
    ]
    jobs = [(path, [*common, "-O1", "-Wextra"]) for path in kernel_sources()]
    jobs += [(path, with_torch) for path in torch_sources()]
    with ThreadPoolExecutor(JOBS) as pool:
        objects = list(pool.map(lambda job: compile_object(*job, BUILD, torch.__version__), jobs))
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    library = BUILD / f"{MODULE}.{digest(*(path.name for path in objects))}{suffix}"
    if not library.exists():
        for stale in BUILD.glob(f"{MODULE}.*{suffix}"):
            stale.unlink(missing_ok=True)
        part = library.with_suffix(f".{os.getpid()}.part")
        libraries = [f"-l{name}" for name in ("c10", "torch_cpu", "torch", "torch_python")]
        run_compiler(["-shared", "-fopenmp", *objects, f"-L{lib}", *libraries, "-o", part])
        part.replace(library)
    return library


def _import(name: str, library: Path) -> ModuleType:
    loader = ExtensionFileLoader(name, str(library))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@functools.cache
def load() -> ModuleType:
    """Build if anything changed, and import. Has what ``sparse_accel._C`` has, and ``set_order``."""
    library = build()
    module = _import(MODULE, library)
    module.set_order = _import("_emulator", library).set_order  # type: ignore[attr-defined]
    return module


if __name__ == "__main__":
    print(build())
