"""Setting up a checkout: which torch tools/setup_venv.py installs, and when make sets up and builds again."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparse_accel import _compat

ROOT = Path(__file__).resolve().parents[3]


def setup_venv(code: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", f"import setup_venv\n{code}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tools"), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_setup_names_the_missing_compiler(tmp_path):
    result = setup_venv("setup_venv.check_compiler()", CXX=str(tmp_path / "g++ -m64"))
    assert result.returncode == 1
    assert "needs a C++20 compiler" in result.stderr


def test_setup_refuses_an_old_python():
    result = setup_venv("import sys; sys.version_info = (3, 9); sys.argv = ['x']; setup_venv.main()")
    assert result.returncode == 1
    assert "needs Python 3.10 or later" in result.stderr
    assert "make PYTHON=" in result.stderr


def test_setup_falls_back_to_the_default_index():
    result = setup_venv("setup_venv.CPU_INDEX = 'http://127.0.0.1:9'; print(setup_venv.index_options())")
    assert "torch comes from pip's default index" in result.stdout
    assert result.stdout.endswith("[]\n")


def test_torch_range_is_that_of_pyproject():
    info = runpy.run_path(str(ROOT / "cmake/torch_info.py"))
    assert info["requirement"]() == "torch>=" + ".".join(str(part) for part in _compat.OLDEST)
    versions = ["2.10.0", "2.11.0", "2.11.0a0+git1234567", "2.13.1+cu130", "2.15.0", "3.0", "unknown", ""]
    assert [info["fits"](version) for version in versions] == [False, True, True, True, True, True, False, False]


def test_setup_knows_which_torch_is_there(tmp_path):
    constraints = tmp_path / "constraints.txt"  # of a machine: they say what to install, not what is there
    constraints.write_text("torch<1\n")
    release = torch.__version__.split("+")[0]
    requirements = [f"torch=={release}", "torch>=2.11", f"torch>{release}", "torch==2.10.*", "no requirement"]
    code = f"import json; print(json.dumps([setup_venv.satisfied({sys.executable!r}, r) for r in {requirements}]))"
    result = setup_venv(code, PIP_CONSTRAINT=str(constraints))
    assert json.loads(result.stdout) == [True, True, False, False, False]


FAKE_SETUP = """
import json, sys
made = []
setup_venv.works = lambda python: True
setup_venv.pip_version = lambda python: [26, 0]
setup_venv.check_compiler = lambda: None
setup_venv.torch_info = lambda python: ("/torch", INSTALLED, "") if INSTALLED else ()
setup_venv.satisfied = lambda python, requirement: requirement == "torch==" + INSTALLED
setup_venv.install_torch = lambda pip, requirement: made.append(requirement)
setup_venv.torch_error = lambda python: "torch is not importable"
sys.argv = ["setup_venv.py", "--torch", WANTED]
try:
    setup_venv.main()
finally:
    print(json.dumps(made))
"""


@pytest.mark.parametrize(
    "installed, wanted, made",
    [
        ("2.13.0", "torch==2.15.0", ["torch==2.15.0"]),  # another one is there: exactly what was asked for
        ("2.15.0", "torch==2.15.0", []),
        ("2.15.0", "", []),  # any torch that fits stays
        ("", "torch==2.15.0", ["torch==2.15.0"]),
        ("", "", ["torch==2.13.0"]),
    ],
)
def test_setup_installs_what_is_asked_for(installed, wanted, made):
    result = setup_venv(f"INSTALLED = {installed!r}; WANTED = {wanted!r}\n{FAKE_SETUP}")
    assert json.loads(result.stdout.splitlines()[-1]) == made
    if not installed:  # the fake installs nothing
        assert result.returncode == 1
        assert "no torch to build against: torch is not importable" in result.stderr


def test_setup_names_constraints_that_stand_in_the_way(tmp_path):
    pip = tmp_path / "pip"
    pip.write_text("#!/bin/sh\n[ $1 = config ] && echo \":env:.constraint='/etc/some.txt'\"\n[ $1 = config ]\n")
    pip.chmod(0o755)
    result = setup_venv(f"setup_venv.index_options = list; setup_venv.install_torch([{str(pip)!r}], 'torch==2.15.0')")
    assert result.returncode == 1
    assert (
        "install torch==2.15.0; pip is told to keep to constraints: :env:.constraint='/etc/some.txt'" in result.stderr
    )


def test_another_torch_sets_up_and_builds_again(tmp_path):
    if not shutil.which("make"):
        pytest.skip("needs make")
    for name in ("pyproject.toml", "CMakeLists.txt", "cmake", "csrc", "tools", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("base", ".venv/bin/python"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
        (tmp_path / name).chmod(0o755)

    def calls(*variables: str) -> list[str]:
        """What `make build` does: "setup", with the torch it asks for, "build" and "needs", what runs needs."""
        (tmp_path / "calls").write_text("")
        ours = ("TORCH", "VENV", "MAKEFLAGS", "SPARSE_ACCEL_CUDA", "SPARSE_ACCEL_WERROR")
        env = {key: value for key, value in os.environ.items() if key not in ours}
        command = ["make", "build", f"PYTHON={tmp_path}/base", *variables]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=env)
        lines = (tmp_path / "calls").read_text().splitlines()
        setups = [re.search(r"--torch (torch\S*|)", line) for line in lines]
        others = ["build" if "--editable" in line else "needs" for line in lines]
        pairs = zip(setups, others, strict=True)
        return [f"setup {setup[1]}".strip() if setup else other for setup, other in pairs]

    assert calls() == ["setup", "build", "needs"]
    assert calls() == []
    assert calls("TORCH=torch==2.15.0") == ["setup torch==2.15.0", "build", "needs"]
    assert calls("TORCH=torch==2.15.0") == []
    assert calls("TORCH=torch>=2.11") == ["setup torch>=2.11", "build", "needs"]
    assert calls("TORCH=torch==2.15.0") == ["setup torch==2.15.0", "build", "needs"]
    assert calls("TORCH=torch==2.15.0", "SPARSE_ACCEL_WERROR=ON") == ["build"]
    assert calls() == ["setup", "build", "needs"]


def test_what_the_demo_needs_is_said_twice_alike():
    """pip cannot install a package's extra without the package, and a group cannot include an extra."""
    text = (ROOT / "pyproject.toml").read_text()
    group, extra = (re.search(r"^demo = \[(.*)\]$", part, re.M)[1] for part in text.split("[dependency-groups]")[::-1])
    own = re.findall(r'^  ("(?!torch)[\w-]+>=[\d.]+"),', text.partition("keywords")[0], re.M)
    assert set(group.split(", ")) == {*extra.split(", "), *own}


def test_tested_releases_are_those_of_the_ci_jobs():
    jobs = (ROOT / ".github/workflows/ci.yml").read_text()
    for name in re.findall(r'"torch==(\d+\.\d+)', jobs):
        assert _compat.OLDEST <= tuple(int(part) for part in name.split(".")) <= _compat.NEWEST
    for release in (_compat.OLDEST, _compat.NEWEST):
        assert f'torch: "torch=={release[0]}.{release[1]}.*"' in jobs
