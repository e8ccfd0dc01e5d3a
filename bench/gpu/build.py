"""Builds the module with CUDA, for this card only, and the C++ tests of tests/cuda_emulator as CUDA programs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from .facts import find_tool
from .part import FAILED, LACKING, PASSED, READY, Outcome, Run, failure, of_commands
from .process import Command, run_all
from .process import run as run_command

# As in CMakeLists.txt.
NVCC_FLAGS = [
    "-std=c++17",
    "-O2",
    "-lineinfo",  # sanitizers name the line
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
]


def program_sources(root: Path) -> list[Path]:
    """The C++ tests; not bugs.cpp, whose mistakes would be a GPU's too."""
    return sorted((root / "tests" / "cuda_emulator").glob("test_*.cpp"))


def program_command(nvcc: str, source: Path, architecture: str, output: Path) -> Command:
    """Compile a C++ test for a card of the compute capability `architecture` ("90")."""
    csrc = source.parents[2] / "csrc"
    folders = [f"-I{folder}" for folder in (source.parent, csrc, csrc / "cuda")]
    words = [nvcc, *NVCC_FLAGS, f"-arch=sm_{architecture}", *folders, "-x", "cu", str(source), "-o", str(output)]
    return Command(f"nvcc_{source.stem}", words)


def program(run: Run, source: Path) -> Path:
    """Where the program of a C++ test is built."""
    return run.work / "programs" / source.stem


def build_programs(run: Run, seconds: float) -> Outcome:
    """All C++ tests, a third of the cores for them."""
    (run.work / "programs").mkdir(parents=True, exist_ok=True)
    commands = [
        program_command(find_tool("nvcc") or "nvcc", source, run.architecture, program(run, source))
        for source in program_sources(run.root)
    ]
    return of_commands(run_all(commands, max(2, run.cores // 3), seconds, run.logs))


def rehearse_programs(run: Run, seconds: float) -> Outcome:
    """What nvcc would do, where there is one; tests/test_run_on_gpu.py compiles them."""
    sources = program_sources(run.root)
    nvcc = find_tool("nvcc")
    if not nvcc or not sources:
        return Outcome(LACKING if sources else FAILED, f"{len(sources)} programs" + ("" if nvcc else "; no nvcc"))
    command = program_command(nvcc, sources[0], run.architecture, run.work / "rehearsed")
    command = Command(command.name, [*command.words, "--dryrun"])
    outcome = of_commands([run_command(command, seconds, run.logs / f"{command.name}.log")])
    if not outcome.good:
        return outcome
    return Outcome(READY, f"{len(sources)} programs: {command}")


def cmake_commands(run: Run) -> list[Command]:
    """Configure, and build the module alone."""
    folder = run.work / "module"
    cmake, ninja = find_tool("cmake") or "cmake", find_tool("ninja") or "ninja"
    options = [
        "-DSPARSE_ACCEL_CUDA=ON",
        f"-DSPARSE_ACCEL_CUDA_ARCHITECTURES={run.architecture}-real",
        "-DSPARSE_ACCEL_QUICK_CPU=ON",  # half the time for what the CPU runs; all other code is as in a release
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
    ]
    env = {"CUDACXX": find_tool("nvcc") or "nvcc"}
    configure = [cmake, "-G", "Ninja", "-S", str(run.root), "-B", str(folder), *options]
    build = [cmake, "--build", str(folder), "--parallel", str(run.cores), "--target", "_C"]
    return [Command("configure", configure, env), Command("build", build, env)]


def build_module(run: Run, seconds: float) -> Outcome:
    """CMake and ninja; should they fail, torch's own way of building extensions (`load_jit`'s)."""
    failures, left = [], seconds
    for command in cmake_commands(run):
        done = run_command(command, left, run.logs / f"{command.name}.log")
        left -= done.seconds
        if done.code != 0:
            failures.append(failure(done, done.tail(40)))
            break
    folder = run.work / "module"
    if not failures:
        return stage(run, [*folder.glob("_C*.so"), folder / "_build_info.py"])
    folder = run.work / "jit"
    folder.mkdir(parents=True, exist_ok=True)
    command = run.script("jit", folder, run.root, MAX_JOBS=str(run.cores), CUDA_HOME=_cuda_home())
    done = run_command(command, left, run.logs / "jit.log")
    if done.code != 0:
        return Outcome(FAILED, "neither CMake nor torch.utils.cpp_extension", [*failures, failure(done, done.tail(40))])
    outcome = stage(run, [*folder.glob("_C*.so"), folder / "_build_info.py"])
    note = f"CMake: {failures[0]['why']}; the other parts go on with a module of cpp_extension"
    return Outcome(FAILED, note, [*failures, *outcome.failures], outcome.data, usable=outcome.good)


def _cuda_home() -> str:
    nvcc = find_tool("nvcc")
    home = Path(nvcc).resolve().parent.parent if nvcc else Path("/usr/local/cuda")
    return str(home if (home / "include" / "cuda_runtime_api.h").exists() else "/usr/local/cuda")


def stage(run: Run, built: list[Path]) -> Outcome:
    """Put the built files into a folder of their own, beside links to the checkout's Python files."""
    if len(built) != 2 or not all(path.exists() for path in built):
        why = "expected _C*.so and _build_info.py, got " + ", ".join(str(path) for path in built)
        return Outcome(FAILED, "no module was built", [{"what": "stage", "why": why, "text": ""}])
    shutil.rmtree(run.site, ignore_errors=True)
    package = run.site / "sparse_accel"
    package.mkdir(parents=True)
    for path in (run.root / "sparse_accel").iterdir():
        if path.suffix != ".so" and path.name not in ("_build_info.py", "__pycache__"):
            (package / path.name).symlink_to(path)
    for path in built:
        shutil.copy2(path, package)
    return Outcome(PASSED, f"sm_{run.architecture}", data={"module": str(package / built[0].name)})


def rehearse_module(run: Run, seconds: float) -> Outcome:
    """CMake itself needs a CUDA torch to get far; here its commands are shown and its tools looked for."""
    commands = cmake_commands(run)
    lacking = [name for name in ("cmake", "ninja", "nvcc", "c++") if not find_tool(name)]
    note = " && ".join(str(command) for command in commands)
    return Outcome(LACKING if lacking else READY, (f"no {', no '.join(lacking)}; " if lacking else "") + note)
