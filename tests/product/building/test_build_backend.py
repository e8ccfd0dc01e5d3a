"""`pip install .` builds against the torch that is installed, and fetches one only where there is none that fits.

pip's isolation is imitated: a PYTHONPATH with the build requirements and a `sitecustomize` that takes the interpreter's
own packages out of sight. Nothing is fetched.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_accel import _compat

ROOT = Path(__file__).resolve().parents[3]
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
# scikit-build-core and what it needs
BACKEND = ("scikit_build_core", "packaging", "pathspec", "tomli", "exceptiongroup", "typing_extensions")
HIDE = """
import os, site, sys
hidden = {os.path.realpath(path) for path in site.getsitepackages()}
sys.path[:] = [path for path in sys.path if os.path.realpath(path) not in hidden]
"""
HOOKS = """
import json, sys
sys.path.insert(0, "tools")
import build_backend as backend
print(json.dumps([hook() for hook in (backend.get_requires_for_build_wheel, backend.get_requires_for_build_editable)]))
"""


class Interpreter:
    """A virtual environment, with a fake torch or none, and an isolated build on top of it."""

    def __init__(self, folder: Path):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = folder / "venv/bin/python"
        (self.packages,) = (folder / "venv").glob("lib/python*/site-packages")
        self.overlay = folder / "overlay"
        self.overlay.mkdir()
        (self.overlay / "sitecustomize.py").write_text(HIDE)
        for name in BACKEND:
            spec = importlib.util.find_spec(name)
            if spec and spec.origin:
                origin = Path(spec.origin)
                path = origin.parent if origin.name == "__init__.py" else origin
                (self.overlay / path.name).symlink_to(path)

    def torch(self, version: str, folder: Path | None = None) -> Path:
        """Make a fake torch, in the environment's packages or in `folder`; returns where it is."""
        root = (folder or self.packages) / "torch"
        (root / "lib").mkdir(parents=True)
        (root / "__init__.py").touch()
        (root / "version.py").write_text(f"__version__ = {version!r}\ncuda = None\n")
        for library in ("torch_cpu",):
            (root / "lib" / f"lib{library}.so").touch()
        return root

    def isolated(self, *command: str | Path) -> str:
        env = os.environ | {"PYTHONPATH": str(self.overlay), "PYTHONNOUSERSITE": "1", "PATH": TOOLS}
        result = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def asked_for(self) -> list[str]:
        """What the backend wants of torch in an isolated build; the same for wheels and editable installs."""
        lists = json.loads(self.isolated(self.python, "-c", HOOKS).splitlines()[-1])
        wheel, editable = ([word for word in words if word.startswith("torch")] for words in lists)
        assert wheel == editable
        return wheel


@pytest.fixture
def interpreter(tmp_path: Path) -> Interpreter:
    return Interpreter(tmp_path)


def test_without_torch_one_is_fetched_in_the_range_of_the_dependencies(interpreter):
    found = re.findall(r'"(torch[<>=!~][^"]*)"', (ROOT / "pyproject.toml").read_text())
    assert found == ["torch>=" + ".".join(str(part) for part in _compat.OLDEST)]
    assert interpreter.asked_for() == found


@pytest.mark.parametrize("version, fits", [("2.10.1", False), ("2.11.0", True), ("2.15.0+cpu", True), ("2.16.0", True)])
def test_installed_torch_is_used_where_it_fits(interpreter, version, fits):
    interpreter.torch(version)
    assert interpreter.asked_for() == ([] if fits else ["torch>=2.11"])


@pytest.mark.parametrize("inside", [False, True])
def test_cmake_finds_the_torch_of_the_interpreter(interpreter, tmp_path, inside):
    # `inside`: the isolated build has a torch, fetched because the installed one is too old.
    installed = interpreter.torch("2.10.1" if inside else "2.15.0+installed")
    expected = interpreter.torch("2.15.0+fetched", interpreter.overlay) if inside else installed
    out = interpreter.isolated(interpreter.python, ROOT / "cmake/torch_info.py")
    assert out == f"{expected};2.15.0+{'fetched' if inside else 'installed'};"
    # The program itself: in place of a script of this environment's Python, which PYTHONPATH would mislead.
    cmake = shutil.which("cmake", path=TOOLS)
    (tmp_path / "where.cmake").write_text("message(${CMAKE_COMMAND})")
    where = [cmake, "-P", tmp_path / "where.cmake"]
    cmake = subprocess.run(where, check=True, capture_output=True, text=True).stderr.strip()
    options = ["-DSPARSE_ACCEL_CUDA=OFF", f"-DPython_EXECUTABLE={interpreter.python}"]
    output = interpreter.isolated(cmake, "-G", "Ninja", "-S", ROOT, "-B", tmp_path / "build", *options)
    assert f"sparse_accel: torch 2.15.0+{'fetched' if inside else 'installed'} (CUDA '')" in output


def test_hooks_are_those_of_scikit_build_core():
    code = """
import sys
sys.path.insert(0, "tools")
import build_backend, scikit_build_core.build as original
assert set(original.__all__) <= set(dir(build_backend))
own = [name for name in original.__all__ if getattr(build_backend, name) is not getattr(original, name)]
assert own == ["get_requires_for_build_editable", "get_requires_for_build_wheel"], own
assert not [word for word in build_backend.get_requires_for_build_sdist() if word.startswith("torch")]
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
