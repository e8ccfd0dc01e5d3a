"""Create .venv with a torch that fits this machine and what building sparse_accel needs. Standard library only.

A torch asked for with --torch is installed, whatever was there. Otherwise any torch in the supported range stays that
.venv has, and a new .venv uses a CUDA build of torch that the base interpreter has (--system-site-packages). What is
installed comes from PyTorch's CPU index where that is reachable, else from pip's default index. Does nothing that is
already done.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEFAULT_TORCH = "torch==2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", default=".venv")
    parser.add_argument("--torch", default="", help="a requirement, such as torch==2.15.0; empty: any that fits")
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
        create(options.venv, options.torch)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    if pip_version(python) < [25, 1]:  # knows no --group
        call([*pip, "install", "--upgrade", "pip>=25.1"])
    if not satisfied(python, options.torch) if options.torch else not torch_info(python):
        install_torch(pip, options.torch or DEFAULT_TORCH)
    torch = torch_info(python)
    if not torch:
        fail("no torch to build against: " + torch_error(python))
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


def create(folder, requirement):
    # The interpreter below a virtual environment: that one's packages are what a new one can see.
    base = getattr(sys, "_base_executable", None) or sys.executable
    torch = torch_info(base)
    shared = bool(torch and torch[2]) and (not requirement or satisfied(base, requirement))
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
    """(folder, version, CUDA version) of the torch of an interpreter, () if it has none that fits."""
    result = run_torch_info(python)
    return tuple(result.stdout.split(";")) if result.returncode == 0 else ()


def torch_error(python):
    return run_torch_info(python).stderr.strip()


def run_torch_info(python):
    command = [python, os.path.join(ROOT, "cmake", "torch_info.py")]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)


def satisfied(python, requirement):
    """Whether the packages of an interpreter meet a requirement as they are. Asks no index."""
    options = ["--dry-run", "--no-index", "--no-deps", "--quiet", "--report", "-"]
    command = [python, "-m", "pip", "install", *options, requirement]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    # What is installed counts, not what a constraints file would have.
    environment = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
    environment["PIP_CONFIG_FILE"] = os.devnull
    result = subprocess.run(command, env=environment, universal_newlines=True, **streams)
    return result.returncode == 0 and not json.loads(result.stdout)["install"]


def install_torch(pip, requirement):
    command = [*pip, "install", *index_options(), requirement]
    if subprocess.call(command):
        config = subprocess.check_output([*pip, "config", "list"], universal_newlines=True)
        constraints = [line for line in config.splitlines() if "constraint" in line]
        hint = "; pip is told to keep to constraints: " + ", ".join(constraints) if constraints else ""
        fail("failed: " + " ".join(command) + hint)


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
