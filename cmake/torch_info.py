"""Print "folder;version;CUDA version" of the torch to build against: the one that will be imported.

That is the torch that the running interpreter finds. In pip's isolated builds the interpreter's own packages are out
of sight: where the isolated environment has no torch, theirs is found.

Reads torch/version.py instead of importing torch: 30 ms instead of seconds, and it works where torch's own shared
libraries cannot be loaded. Standard library only.
"""

import importlib.util
import os
import pathlib
import re
import runpy
import subprocess
import sys

ISOLATION = ("PYTHONPATH", "PYTHONNOUSERSITE")  # how pip hides packages


def requirement():
    """What pyproject.toml asks for, such as "torch>=2.11"."""
    pyproject = pathlib.Path(__file__).resolve().parent.parent / "pyproject.toml"
    return re.search(r'"(torch>=\d+\.\d+)"', pyproject.read_text(encoding="utf-8")).group(1)


def fits(version):
    """Whether a version is in the range of pyproject.toml."""
    found = re.match(r"(\d+)\.(\d+)", version)
    oldest = requirement().split(">=")[1].split(".")
    return bool(found) and [int(part) for part in found.groups()] >= [int(part) for part in oldest]


def torch_info():
    """(folder, version, CUDA version or "") of torch; LookupError if there is none that fits."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return outside_isolation("torch is not importable from " + sys.executable + ".")
    root = pathlib.Path(spec.origin).parent
    version = runpy.run_path(str(root / "version.py"))
    if not fits(version["__version__"]):
        message = "torch {} in {} is too old: sparse_accel needs {}."
        raise LookupError(message.format(version["__version__"], root, requirement()))
    return root.as_posix(), version["__version__"], version.get("cuda") or ""


def outside_isolation(reason):
    """torch_info() of this interpreter with its own packages in sight; LookupError(reason) if they already were."""
    environment = {key: value for key, value in os.environ.items() if key not in ISOLATION}
    if environment == os.environ:
        raise LookupError(reason)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    result = subprocess.run([sys.executable, __file__], env=environment, universal_newlines=True, **streams)
    if result.returncode:
        raise LookupError(result.stderr.strip())
    return tuple(result.stdout.split(";"))


if __name__ == "__main__":
    try:
        print(*torch_info(), sep=";", end="")
    except LookupError as error:
        sys.exit(str(error))
