"""Every way in which a build or an import cannot work ends in a message that says what to do."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CMAKE = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


# --- import -----------------------------------------------------------------------------------------------------------


class Installation:
    """A folder with sparse_accel's check at import, a build record and a torch, all but the first one fake."""

    def __init__(self, folder: Path):
        self.folder = folder
        package = folder / "sparse_accel"
        package.mkdir()
        shutil.copy(ROOT / "sparse_accel" / "_compat.py", package)
        self.write("sparse_accel/__init__.py", "from . import _compat\n_compat.check()\n")
        self.write("sparse_accel/_C.py", "")
        self.build()
        self.torch("2.13.0+cpu", None)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def build(self, torch: str = "2.13.0+cpu", cuda: str = "", with_cuda: bool = False) -> None:
        record = f"torch_version = {torch!r}\ntorch_cuda = {cuda!r}\nwith_cuda = {with_cuda}\n"
        self.write("sparse_accel/_build_info.py", record)

    def torch(self, version: str, cuda: str | None) -> None:
        self.write("torch/__init__.py", f"__version__ = {version!r}\nfrom . import version\n")
        self.write("torch/version.py", f"cuda = {cuda!r}\n")

    def remove(self, name: str) -> None:
        path = self.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def imported(self, *options: str) -> subprocess.CompletedProcess:
        """Import it; message of the ImportError on stdout. -S: no site-packages, so no editable install."""
        code = f"""
            import sys
            sys.path.insert(0, {str(self.folder)!r})
            try:
                import sparse_accel
            except ImportError as error:
                print(type(error).__name__, error)
        """
        self.write("user.py", textwrap.dedent(code))
        command = [sys.executable, "-S", "-E", "-B", *options, "user.py"]
        return subprocess.run(command, check=False, capture_output=True, text=True, cwd=self.folder)

    def import_error(self) -> str:
        """Message of the ImportError, "" if the import works; it says nothing else."""
        result = self.imported()
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout


@pytest.fixture
def installation(tmp_path):
    return Installation(tmp_path)


@pytest.mark.parametrize("version", ["2.13.0+cpu", "2.13.1", "2.11.0", "2.15.1"])
@pytest.mark.parametrize("cuda", [None, "13.0"])
def test_import_works_with_any_tested_torch(installation, version, cuda):
    installation.torch(version, cuda)  # a CUDA torch under a CPU build, too
    assert installation.import_error() == ""


@pytest.mark.parametrize("version", ["2.10.2+cpu", "1.13.1", "2.9.0a0+git1234567", "unknown"])
def test_import_with_a_torch_that_is_too_old(installation, version):
    installation.build(torch=version)
    installation.torch(version, None)
    message = installation.import_error()
    assert message.startswith(f"ImportError sparse_accel needs torch 2.11 or later, but torch {version} is installed")
    assert "pip install 'torch>=2.11'" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("version", ["2.16.0+cpu", "2.16.0.dev20270101", "3.0.0"])
def test_import_with_a_torch_newer_than_tested_warns(installation, version):
    installation.build(torch=version)
    installation.torch(version, None)
    result = installation.imported()
    assert result.stdout == ""
    assert result.stderr.count("Warning") == 1
    assert "user.py:5: UntestedTorchWarning: sparse_accel was tested with torch 2.11 to 2.15, and" in result.stderr
    assert f"torch {version} is installed" in result.stderr
    assert installation.imported("-W", "ignore:sparse_accel was tested with:UserWarning").stderr == ""
    installation.build(torch="2.11.0+cpu")  # what it was built with does not matter
    assert installation.imported().stderr == result.stderr


@pytest.mark.parametrize("running, shown", [(None, "no CUDA"), ("12.8", "CUDA 12.8")])
def test_import_with_another_cuda(installation, running, shown):
    installation.build(torch="2.13.0+cu130", cuda="13.0", with_cuda=True)
    installation.torch("2.13.0", running)
    message = installation.import_error()
    assert "CUDA 13.0" in message
    assert shown in message
    assert "pip install --no-build-isolation" in message
    installation.torch("2.13.0", "13.2")  # the major version decides
    assert installation.import_error() == ""


def test_import_without_torch(installation):
    installation.remove("torch")
    message = installation.import_error()
    assert "needs torch, which is not installed" in message
    assert "https://pytorch.org/get-started" in message


def test_import_with_a_broken_torch_shows_torchs_own_error(installation):
    installation.write("torch/__init__.py", "import a_module_that_torch_lacks\n")
    assert "a_module_that_torch_lacks" in installation.import_error()


def test_import_from_the_source_tree(installation):
    installation.remove("sparse_accel/_build_info.py")
    installation.write("CMakeLists.txt", "")
    message = installation.import_error()
    assert f"source tree {installation.folder}" in message
    assert "make build" in message
    assert "run Python from another folder" in message


@pytest.mark.parametrize("missing", ["_build_info.py", "_C.py"])
def test_import_of_an_incomplete_installation(installation, missing):
    installation.remove(f"sparse_accel/{missing}")
    message = installation.import_error()
    assert "no compiled module for this Python" in message
    assert "Install it again" in message


def test_import_with_an_undefined_symbol(installation):
    installation.write("sparse_accel/_C.py", "raise ImportError('_C.so: undefined symbol: _ZN2at3addE')")
    message = installation.import_error()
    assert "undefined symbol: _ZN2at3addE" in message
    assert "headers of torch 2.13.0+cpu for torch 2.11 and later, and torch 2.13.0+cpu is installed" in message


# --- cmake ------------------------------------------------------------------------------------------------------------


def configure(folder: Path, *options: str, torch: dict | None = None, **environment: str) -> str:
    """Errors of a failing configure run, on one line. `torch`: a fake one is found instead of the installed."""
    env = {key: value for key, value in os.environ.items() if key not in ("CUDACXX", "CXX")} | environment
    if torch is not None:
        fake = folder / "fake" / "torch"
        (fake / "lib").mkdir(parents=True)
        (fake / "__init__.py").touch()
        (fake / "version.py").write_text(f"__version__ = {torch['version']!r}\ncuda = {torch['cuda']!r}\n")
        for library in ("torch_cpu",):
            (fake / "lib" / f"lib{library}.so").touch()
        env["PYTHONPATH"] = str(fake.parent)
    assert CMAKE, "cmake is among the build requirements"
    python = f"-DPython_EXECUTABLE={sys.executable}"
    command = [CMAKE, "-G", "Ninja", "-S", ROOT, "-B", folder / "build", python, *options]
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    result = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert result.returncode != 0, result.stdout
    return re.sub(r"\s+", " ", result.stderr)


CPU = {"version": "2.13.0+cpu", "cuda": None}


def test_cuda_on_needs_a_cuda_torch(tmp_path):
    message = configure(tmp_path, "-DSPARSE_ACCEL_CUDA=ON", torch=CPU)
    assert "SPARSE_ACCEL_CUDA=ON needs a CUDA build of torch, but torch 2.13.0+cpu" in message
    assert "set SPARSE_ACCEL_CUDA=OFF" in message


@pytest.mark.parametrize("mode, torch", [("ON", {"version": "2.13.0+cu130", "cuda": "13.0"}), ("CHECK", CPU)])
def test_missing_nvcc(tmp_path, mode, torch):
    message = configure(tmp_path, f"-DSPARSE_ACCEL_CUDA={mode}", torch=torch, CUDACXX=str(tmp_path / "nvcc"))
    assert f"SPARSE_ACCEL_CUDA={mode} needs nvcc" in message
    assert "Install the CUDA toolkit" in message


def test_cuda_major_mismatch(tmp_path):
    if not (shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists()):
        pytest.skip("needs nvcc")
    message = configure(tmp_path, "-DSPARSE_ACCEL_CUDA=AUTO", torch={"version": "2.13.0+cu99", "cuda": "99.1"})
    assert "torch 2.13.0+cu99 was built with CUDA 99.1, but" in message
    assert "Name an nvcc of CUDA 99 in the environment variable CUDACXX" in message


def test_unknown_cuda_mode(tmp_path):
    message = configure(tmp_path, "-DSPARSE_ACCEL_CUDA=MAYBE", torch=CPU)
    assert "SPARSE_ACCEL_CUDA is 'MAYBE'; expected AUTO, ON, OFF or CHECK" in message


def test_missing_torch_library(tmp_path):
    (tmp_path / "fake/torch").mkdir(parents=True)
    (tmp_path / "fake/torch/__init__.py").touch()
    (tmp_path / "fake/torch/version.py").write_text("__version__ = '2.13.0'\ncuda = None\n")
    message = configure(tmp_path, PYTHONPATH=str(tmp_path / "fake"))
    assert "No libtorch_cpu.so in" in message


def test_missing_torch(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    message = configure(tmp_path, f"-DPython_EXECUTABLE={tmp_path}/venv/bin/python")
    assert "needs torch at build time: torch is not importable from" in message
    assert "pip install --no-build-isolation ." in message


def test_old_torch(tmp_path):
    message = configure(tmp_path, torch={"version": "2.10.1+cpu", "cuda": None})
    assert f"torch 2.10.1+cpu in {tmp_path}/fake/torch is too old: sparse_accel needs torch>=2.11." in message


def test_missing_compiler(tmp_path):
    message = configure(tmp_path, torch=CPU, CXX=str(tmp_path / "g++"))
    assert "needs a C++20 compiler" in message
    assert "apt install g++" in message
