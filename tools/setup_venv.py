"""Create .venv with a torch that fits this machine and what building sparse_accel needs. Standard library only.

A CUDA build of torch that the base interpreter already has is used (--system-site-packages); otherwise torch comes
from PyTorch's CPU index where that is reachable, else from pip's default index. Does nothing that is already done.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", default=".venv")
    parser.add_argument("--torch", default="torch==2.13.0", help="what to install where there is no CUDA torch")
    parser.add_argument("--groups", nargs="*", default=[], help="dependency groups of pyproject.toml to install")
    options = parser.parse_args()

    if sys.version_info < (3, 10):
        fail(
            f"sparse_accel needs Python 3.10 or later; {sys.executable} is {sys.version.split()[0]}. "
            "Name another one: make PYTHON=/path/to/python3"
        )
    check_compiler()
    os.chdir(ROOT)
    python = os.path.join(options.venv, "bin", "python")
    if not works(python):
        create(options.venv)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    if pip_version(python) < [25, 1]:  # knows no --group
        call([*pip, "install", "--upgrade", "pip>=25.1"])
    torch = torch_info(python)
    if not fits(torch[1]):
        call([*pip, "install", *index_options(), options.torch])
        torch = torch_info(python)
    print(f"{options.venv}: torch {torch[1]} (CUDA {torch[2] or 'no'}) in {torch[0]}")
    groups = [word for group in options.groups for word in ("--group", group)]
    if groups:
        call([*pip, "install", *groups])


def check_compiler():
    compiler = os.environ.get("CXX", "").split() or [next(filter(shutil.which, ("c++", "g++", "clang++")), "c++")]
    if shutil.which(compiler[0]) is None:
        fail(
            f"sparse_accel needs a C++20 compiler (GCC 11 or later, Clang 14 or later) and '{compiler[0]}' was not "
            "found. Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; or name yours: CXX=..."
        )


def create(folder):
    # The interpreter below a virtual environment: that one's packages are what a new one can see.
    base = getattr(sys, "_base_executable", None) or sys.executable
    torch = torch_info(base)
    shared = fits(torch[1]) and bool(torch[2])
    print(f"{folder}: new virtual environment of {base}" + (f", sharing its torch {torch[1]}" if shared else ""))
    if subprocess.call([base, "-m", "venv", "--clear", *(["--system-site-packages"] if shared else []), folder]):
        fail(
            f"'{base} -m venv' failed. Debian, Ubuntu: apt install python3-venv; "
            "or name another Python: make PYTHON=/path/to/python3"
        )


def works(python):
    if not os.path.exists(python):
        return False
    return subprocess.call([python, "-m", "pip", "--version"], stdout=subprocess.DEVNULL) == 0


def pip_version(python):
    output = subprocess.check_output([python, "-m", "pip", "--version"], universal_newlines=True)
    return numbers(re.match(r"pip (\d+\.\d+)", output).group(1))


def torch_info(python):
    """(folder, version, CUDA version) of the torch of an interpreter, ("", "", "") if it has none."""
    command = [python, os.path.join(ROOT, "cmake", "torch_info.py")]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True)
    return tuple(result.stdout.split(";")) if result.returncode == 0 else ("", "", "")


def fits(version):
    """Whether a version is in the range that pyproject.toml names for torch."""
    with open(os.path.join(ROOT, "pyproject.toml")) as file:
        low, high = re.search(r'"torch>=(\d+\.\d+),<(\d+\.\d+)"', file.read()).groups()
    match = re.match(r"\d+\.\d+", version)
    return bool(match) and numbers(low) <= numbers(match.group()) < numbers(high)


def numbers(version):
    return [int(part) for part in version.split(".")]


def index_options():
    try:
        with urllib.request.urlopen(CPU_INDEX + "/torch/", timeout=5):
            return ["--index-url", CPU_INDEX]
    except (urllib.error.URLError, OSError) as error:
        print(f"{CPU_INDEX} is not reachable ({error}): torch comes from pip's default index")
        return []


def call(command):
    if subprocess.call(command):
        fail("failed: " + " ".join(command))


def fail(message):
    sys.exit("error: " + message)


if __name__ == "__main__":
    main()
