"""Source archive, wheel, clean environment, load_jit and the compile check of the CUDA sources."""

import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import sparse_accel
from sparse_accel import _jit

ROOT = Path(__file__).resolve().parents[3]
TOOLS = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
SCORE = (
    "group_score([torch.arange(6.0).view(2, 3)], [1, 2, 3, 1], [out := torch.empty(2)], 'l1', False) or out.tolist()"
)


def run(*command, **options):
    """Output of a command; its whole output in the failure."""
    command = [str(word) for word in command]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    result = subprocess.run(command, text=True, check=False, **streams, **options)
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The source archive of this checkout, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    code = f"import sys; sys.path.insert(0, 'tools'); import build_backend; build_backend.build_sdist({str(folder)!r})"
    run(sys.executable, "-c", code, cwd=ROOT, env=TOOLS)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder)
    return archive.with_suffix("").with_suffix("")


def test_source_archive_has_what_a_build_needs_and_nothing_built(unpacked):
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    csrc = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert csrc <= names
    build = {"CMakeLists.txt", "pyproject.toml", "cmake/torch_info.py", "tools/build_backend.py"}
    assert build | {"LICENSE", "sparse_accel/py.typed"} <= names
    assert not [name for name in names if re.search(r"\.(so|o|pyc)$|^\.venv/|^build/", name)]


def test_a_static_runtime_stays_inside(tmp_path):
    """Where the compiler has libstdc++ as an archive only, its copy must not mix with torch's: locale facets have
    numbers that each copy gives for itself, and the module would crash on import."""
    builds = sorted((ROOT / "build/editable").glob(f"cp{sys.version_info.major}{sys.version_info.minor}-*/build.ninja"))
    if not builds:
        pytest.skip("not built as an editable installation")
    folder, module = builds[0].parent, tmp_path / "module.so"
    link = run("ninja", "-t", "commands", "_C", cwd=folder, env=TOOLS).splitlines()[-1]
    link, replaced = re.subn(r" -o _C\.\S+", f" -static-libstdc++ -o {module}", link)
    assert replaced == 1
    run("sh", "-c", link, cwd=folder)
    names = run("nm", "-D", "-C", "--defined-only", module)
    assert "PyInit__C" in names
    assert "std::locale" not in names
    assert "std::num_put" not in names


COPY = """#!{python}
import glob, os, shutil, sys
words = sys.argv[1:]
if "-o" in words:
    output = words[words.index("-o") + 1]
    for built in glob.glob(os.path.join({folder!r}, {tag!r}, output)):
        shutil.copy(built, output)
        sys.exit()
os.execvp(words[0], words)
"""


@pytest.fixture(scope="module")
def installed(unpacked, tmp_path_factory):
    """Python and site-packages of a new environment with the wheel of the unpacked archive, and with torch.

    It is the packaging that is tested: what this checkout's own build has compiled of the same sources is taken as it
    is. `test_load_jit_builds_the_sources_of_the_wheel` compiles what the wheel carries."""
    folder = tmp_path_factory.mktemp("wheel")
    launcher = folder / "copy.py"
    own = ROOT / "build/editable" if not sparse_accel.build_info().with_cuda else folder / "nothing"
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-*"  # another Python's are of no use
    launcher.write_text(COPY.format(python=sys.executable, folder=str(own), tag=tag))
    launcher.chmod(0o755)
    settings = [f"-Ccmake.define.CMAKE_CXX_COMPILER_LAUNCHER={launcher}"]
    if not list(own.glob(f"{tag}/CMakeFiles/*/csrc")):
        fast = (
            "cmake.build-type=Debug",
            "cmake.define.CMAKE_CXX_FLAGS_DEBUG=-O0",
            "cmake.define.SPARSE_ACCEL_PORTABLE=ON",
        )
        settings += [f"-C{word}" for word in fast]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-build-isolation", "--no-deps", *settings, "-w", folder, unpacked]
    run(*pip, *build, env={**TOOLS, "SPARSE_ACCEL_CUDA": "OFF"})
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv/bin/python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)

    # torch and numpy from here, by path: without this environment's import hooks.
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    here = [*site.getsitepackages(), str(Path(torch.__file__).parent.parent)]
    (packages / "here.pth").write_text("\n".join(dict.fromkeys(here)) + "\n")
    return python, packages


@pytest.mark.slow
def test_wheel_from_source_archive_in_a_clean_environment(installed, tmp_path):
    python, packages = installed
    code = f"""
import torch, sparse_accel, sparse_accel._C as C
print(sparse_accel.__file__, C.__file__, (C.{SCORE}), repr(sparse_accel.build_info().commit), sep="\\n")
from sparse_accel import _jit
print(len(_jit.sources(True)), _jit.source_dir())
"""
    lines = run(python, "-c", code, cwd=tmp_path).splitlines()[-5:]
    assert lines[0].startswith(str(packages))
    assert lines[1].startswith(str(packages))
    assert lines[2:4] == ["[3.0, 12.0]", "''"]
    assert lines[4] == f"{len(_jit.sources(True))} {packages / 'sparse_accel/csrc'}"
    assert f"torch running       {torch.__version__}" in run(python.parent / "sparse-accel", "info", cwd=tmp_path)


@pytest.mark.slow
def test_load_jit_builds_the_sources_of_the_wheel(installed, tmp_path):
    python, packages = installed
    code = f"""
import torch, sparse_accel
module = sparse_accel.load_jit(with_cuda=False, extra_cflags=["-O0", "-DSPARSE_ACCEL_PORTABLE"])
assert set(dir(module)) >= {{name for name in dir(sparse_accel._C) if not name.startswith("_")}}, dir(module)
print(module.{SCORE}, module.__file__, sparse_accel.__file__)
"""
    output = run(python, "-c", code, env={**TOOLS, "TORCH_EXTENSIONS_DIR": str(tmp_path)}, cwd=tmp_path)
    assert output.splitlines()[-1].startswith(f"[3.0, 12.0] {tmp_path}")
    assert output.splitlines()[-1].endswith(str(packages / "sparse_accel/__init__.py"))


def test_load_jit_says_what_is_missing(monkeypatch):
    from torch.utils import cpp_extension

    monkeypatch.setattr(cpp_extension, "is_ninja_available", lambda: False)
    with pytest.raises(RuntimeError, match="pip install ninja"):
        sparse_accel.load_jit()
    monkeypatch.setattr(cpp_extension, "is_ninja_available", lambda: True)
    monkeypatch.setenv("CXX", "/nowhere/g++ -m64")
    with pytest.raises(RuntimeError, match="needs a C\\+\\+20 compiler"):
        sparse_accel.load_jit()
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(RuntimeError, match="CUDA build of torch"):
        sparse_accel.load_jit(with_cuda=True)


def test_load_jit_takes_every_source_once():
    # A file outside the globs would be left out silently; cpp_extension needs a name of its own for each.
    folder = _jit.source_dir()
    every = sorted(path for path in folder.rglob("*") if path.suffix in (".cpp", ".cu"))
    assert _jit.sources(with_cuda=True) == every
    assert sorted(path for paths in _jit.units(with_cuda=True).values() for path in paths) == every
    stems = [path.stem for path in every if path.suffix == ".cpp"]
    assert len(stems) == len(set(stems)), stems


@pytest.mark.slow
def test_cuda_sources_compile(tmp_path):
    if os.environ.get("SPARSE_ACCEL_CUDA") == "CHECK":
        pytest.skip("the build of this run has compiled them: SPARSE_ACCEL_CUDA=CHECK")
    if not (shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists()):
        pytest.skip("needs nvcc")
    cmake = shutil.which("cmake", path=TOOLS["PATH"])
    options = ["-DSPARSE_ACCEL_CUDA=CHECK", "-DSPARSE_ACCEL_WERROR=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    run(cmake, "-G", "Ninja", "-S", ROOT, "-B", tmp_path, *options, env=TOOLS)
    targets = ["sparse_accel_cuda_bindings", "sparse_accel_kernels_check"]
    run(cmake, "--build", tmp_path, "--parallel", "2", "--target", *targets, env=TOOLS)


def test_build_info():
    info = sparse_accel.build_info()
    assert info.version == sparse_accel.__version__
    assert f'version = "{info.version}"' in (ROOT / "pyproject.toml").read_text()
    assert info.torch_running == torch.__version__
    assert re.match(r"2\.(1[1-9]|[2-9]\d)\.", info.torch_built)  # whose headers: not what runs it
    assert info.cpu_capability in ("AVX512", "AVX2", "DEFAULT")
    assert info.threads == torch.get_num_threads()
    assert re.fullmatch(r"([0-9a-f]{7,}(-dirty)?)?", info.commit)
    assert "-O2" in info.compiler
    assert bool(info.cuda_architectures) == info.with_cuda
    assert "cpu capability" in str(info)


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_instruction_set_follows_torchs_switch(capability):
    if capability == "avx2" and not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        pytest.skip("needs a CPU with AVX2")
    env = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    code = "import sparse_accel; print(sparse_accel.build_info().cpu_capability)"
    output = run(sys.executable, "-c", code, env=env, cwd="/")
    assert output.splitlines()[-1] == capability.upper()
