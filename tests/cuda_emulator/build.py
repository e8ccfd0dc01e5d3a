"""Builds the CUDA backend for the CPU: kernels under the emulator, the ATen side on CPU tensors.

``load()`` returns a module with the functions of ``sparse_accel._C`` that runs every op through the CUDA kernels,
and ``set_order("forward" | "reverse" | "random", seed)`` for the order in which emulated threads and blocks run,
``set_clusters(blocks)`` for a device with clusters of up to so many blocks (0, as at the start: without), and
``launches()``, how many there have been.
The emulator's errors (divergent barriers, deadlocks, bad launches) are RuntimeErrors.

Needs a C++ compiler and torch; no CUDA toolkit, no GPU. What needs no torch either, ``python build.py ahead`` compiles.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "cuda_emulated"
JOBS = 2  # compilers at a time
MODULE = "_C_emulated"
DEFINES = ["-DSPARSE_ACCEL_EMULATED", "-fno-strict-aliasing"]  # kernels read and write 16-byte words
EMULATED = [*DEFINES, f"-I{HERE}", f"-I{CSRC / 'cuda'}"]


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
        raise RuntimeError(f"{' '.join(command)}\n{(done.stdout + done.stderr)[:8000]}")


def digest(*parts: object) -> str:
    """A short hash of texts and of files' contents."""
    out = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else str(part).encode()
        out.update(len(data).to_bytes(8, "little") + data)
    return out.hexdigest()[:16]


@contextlib.contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """One process at a time builds what is called `name` there; the others find it finished."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f".{name}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def kernel_headers() -> list[Path]:
    """What kernels and their tests include."""
    patterns = ((CSRC, "*.h"), (CSRC, "cuda/*.h"), (CSRC, "cuda/*.cuh"), (HERE, "*.h"))
    return sorted(path for folder, pattern in patterns for path in folder.glob(pattern))


def torch_headers() -> list[Path]:
    """What the other sources include besides."""
    return sorted([*CSRC.glob("ops/*.h"), *CSRC.glob("cpu/**/*.h")])


def placeless(flags: Iterable[str]) -> str:
    """The flags without the folders of this checkout and of torch: a copied cache is as good."""
    text = " ".join(flags)
    places = [str(ROOT), sysconfig.get_path("include")]
    if "torch" in sys.modules:
        places.append(str(Path(sys.modules["torch"].__file__ or "").parent))
    for place in places:
        text = text.replace(place, "")
    return text


def compile_object(source: Path, flags: list[str], folder: Path, *depends: object) -> Path:
    """Compile one source, unless an object of the same sources, flags and `depends` is there already."""
    key = digest(source.name, source, placeless([*compiler(), *flags]), *kernel_headers(), *depends)
    output = folder / f"{source.name}.{key}.o"
    if not output.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f"{source.name}.*.o"):
            stale.unlink(missing_ok=True)
        part = output.with_suffix(f".{os.getpid()}.part")
        run_compiler([*flags, "-c", "-x", "c++", source, "-o", part])
        part.replace(output)
    return output


# How the programs of C++ tests are built.
SANITIZERS = {
    "plain": ["-O1"],
    # A null pointer crashes by itself, an address that wraps is a bad one: checks of these are half of what there is to
    # compile.
    "asan": [
        "-O0",
        "-DSPARSE_ACCEL_ONE_HALF",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
        "-fno-omit-frame-pointer",
        "-fno-sanitize=null,object-size,vptr,nonnull-attribute,returns-nonnull-attribute,pointer-overflow",
    ],
    "tsan": ["-Og", "-DSPARSE_ACCEL_FLOAT_ALONE", "-fsanitize=thread"],
    "ucontext": ["-O1", "-DEMU_UCONTEXT"],  # the way fibers switch on processors other than x86-64
}
PROGRAM_FLAGS = ["-std=c++17", "-g1", *DEFINES, "-Wall", "-Wextra", "-Wno-unknown-pragmas"]


def build_program(
    source: Path, sanitizer: str, folder: Path = BUILD / "programs", csrc: Path = CSRC, *more: str
) -> Path:
    """Compile a C++ test of one file, with the kernels under `csrc` and `more` flags; returns the program."""
    flags = [*PROGRAM_FLAGS, f"-I{HERE}", f"-I{csrc}", f"-I{csrc / 'cuda'}", *SANITIZERS[sanitizer], *more]
    key = digest(source, placeless([*compiler(), *flags]), *kernel_headers(), *kernel_sources())
    program = folder / f"{source.stem}.{sanitizer}.{key}"
    with alone(folder, f"{source.stem}.{sanitizer}"):
        if not program.exists():
            for stale in folder.glob(f"{source.stem}.{sanitizer}.*"):
                stale.unlink(missing_ok=True)
            part = program.with_suffix(f".{os.getpid()}.part")
            run_compiler([*flags, source, "-o", part])
            part.replace(program)
    return program


PROGRAMS = (
    "reduce", "glm", "group_score", "group_topk", "masked_cg", "metric_step", "prox", "prox_sgd_step", "rmda_step",
    "sparse_linear", "topk_blocks", "topk_threshold",
)  # fmt: skip
LIKE_RMDA = ("prox", "prox_sgd_step")  # the same loops around another body: no race of their own
RACING = tuple(name for name in PROGRAMS if name not in LIKE_RMDA)
WANTED = [*((name, "asan") for name in (*PROGRAMS, "bugs")), *((name, "tsan") for name in (*RACING, "bugs"))]
WANTED.append(("reduce", "ucontext"))


def source(name: str) -> Path:
    """Of the C++ test of that name."""
    return HERE / ("bugs.cpp" if name == "bugs" else f"test_{name}.cpp")


def run_program(
    program: Path, *arguments: str, order: str = "forward", skip: str = "", stop: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a C++ test; `skip`: the "file:line" of a barrier to leave out; `stop`: at the first failure."""
    environment = os.environ | {"EMU_ORDER": order, "EMU_SKIP": skip, "ASAN_OPTIONS": "detect_leaks=0"}
    if stop:
        environment |= {"CHECK_STOP": "1", "TSAN_OPTIONS": "halt_on_error=1"}
    command = [str(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if "unexpected memory mapping" in done.stderr:  # TSan of older compilers, where the kernel randomizes too much
        command = ["setarch", platform.machine(), "-R", *command]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    return done


def kernel_sources() -> list[Path]:
    """The files that need no torch."""
    return sorted((CSRC / "cuda").glob("*.cu"))


COUNTED = (
    "rmda_step",
    "prox_sgd_step",
    "metric_step",
    "prox",
    "group_score",
    "group_topk",
    "topk_threshold",
    "topk_blocks",
)


def build_counter(csrc: Path = CSRC, folder: Path = BUILD / "counted") -> Path:
    """The program that counts what kernels read and write (bytes.cpp): they are instrumented, the rest is not."""
    flags = [*PROGRAM_FLAGS, "-DEMU_COUNT", f"-I{HERE}", f"-I{csrc}", f"-I{csrc / 'cuda'}"]
    sources = [csrc / "cuda" / f"{stem}.cu" for stem in COUNTED]
    with alone(folder, "bytes"), ThreadPoolExecutor(JOBS) as pool:
        # -O0: one call for every access in the source
        futures = [
            pool.submit(compile_object, path, [*flags, "-O0", "-g0", "-fsanitize=thread"], folder) for path in sources
        ]
        objects = [future.result() for future in futures]
        main = compile_object(HERE / "bytes.cpp", [*flags, "-O1"], folder)
        program = folder / f"bytes.{digest(*(path.name for path in [main, *objects]))}"
        if not program.exists():
            for stale in folder.glob("bytes.*"):
                if stale != main:
                    stale.unlink(missing_ok=True)
            run_compiler([main, *objects, "-o", program])
    return program


def torch_units() -> dict[str, list[Path]]:
    """What stands between Python and launchers, and what that links to: translation units by name."""
    from sparse_accel import _jit

    units = {name: paths for name, paths in _jit.units(with_cuda=True).items() if not name.endswith(".cu")}
    units["module.cpp"] += [HERE / "order_bindings.cpp"]  # most of both is pybind11
    return units


def cpu_objects() -> list[Path]:
    """The CPU's kernels as the editable installation has compiled them; none where they are older than a source."""
    editable = ROOT / "build" / "editable"
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-*"  # another Python's are of no use
    built = [
        path
        for part in ("cpu", "avx512")
        for path in editable.glob(f"{tag}/CMakeFiles/sparse_accel_{part}.dir/**/*.o")
        # <tag>/CMakeFiles/<library>.dir/<source>.o: left of sources that are gone, too; Unity/ has no source of its own
        if path.parent.name == "Unity" or ROOT.joinpath(*path.relative_to(editable).parts[3:]).with_suffix("").exists()
    ]
    sources = [path for path in CSRC.glob("**/*") if path.suffix in (".h", ".cpp") and path.parent != CSRC / "cuda"]
    newest = max(path.stat().st_mtime for path in sources)
    if not built or min(path.stat().st_mtime for path in built) < newest:
        return []
    # Without instruction sets first: of several copies of a function the linker keeps the first.
    return sorted(built, key=lambda path: ("avx512" in path.name, "avx2" in path.name, path))


COMMON = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", *EMULATED]
KERNELS = [*COMMON, "-O1", "-Wextra", "-Wno-unknown-pragmas"]


def build() -> Path:
    """Compile and link; returns the shared library."""
    import torch

    from sparse_accel import _jit

    include = Path(torch.__file__).parent / "include"
    lib = include.parent / "lib"
    with_torch = [
        *COMMON,
        "-O0",
        "-w",  # the main build reports
        "-fopenmp-simd",
        "-DSPARSE_ACCEL_WITH_CUDA",
        f"-DTORCH_EXTENSION_NAME={MODULE}",
        *(f"-isystem{path}" for path in (include, sysconfig.get_path("include"))),
    ]
    ready = cpu_objects()
    with ThreadPoolExecutor(JOBS) as pool:
        futures = [
            pool.submit(
                compile_object,
                _jit.write_unit(BUILD, name, paths),
                with_torch,
                BUILD,
                torch.__version__,
                *paths,
                *torch_headers(),
            )
            for name, paths in torch_units().items()
            if not (ready and paths[0].is_relative_to(CSRC / "cpu"))
        ]
        futures += [pool.submit(compile_object, path, KERNELS, BUILD) for path in kernel_sources()]
        objects = [future.result() for future in futures]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    library = BUILD / f"{MODULE}.{digest(*(path.name for path in objects), *ready)}{suffix}"
    if not library.exists():
        for stale in BUILD.glob(f"{MODULE}.*{suffix}"):
            stale.unlink(missing_ok=True)
        part = library.with_suffix(f".{os.getpid()}.part")
        run_compiler(["-shared", *objects, *ready, f"-L{lib}", "-ltorch_cpu", "-o", part])
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
    """Build if anything changed, and import. Has what ``sparse_accel._C`` has, ``set_order`` and ``set_clusters``."""
    with alone(BUILD, MODULE):
        library = build()
    module = _import(MODULE, library)
    emulator = _import("_emulator", library)
    module.set_order = emulator.set_order  # type: ignore[attr-defined]
    module.launches = emulator.launches  # type: ignore[attr-defined]
    module.set_clusters = emulator.set_clusters  # type: ignore[attr-defined]
    module.launch_broken_kernel = emulator.launch_broken_kernel  # type: ignore[attr-defined]
    return module


def ahead() -> None:
    """Build what needs no torch, as it is then there when tests ask for it."""
    with ThreadPoolExecutor(JOBS) as pool:
        with alone(BUILD, MODULE):
            list(pool.map(lambda path: compile_object(path, KERNELS, BUILD), kernel_sources()))
        build_counter()
        list(pool.map(lambda wanted: build_program(source(wanted[0]), wanted[1]), WANTED))


if __name__ == "__main__":
    if sys.argv[1:] == ["ahead"]:
        ahead()
    else:
        with alone(BUILD, MODULE):
            print(build())
