"""Print "folder;version;CUDA version" of the torch that the running interpreter would import.

Reads torch/version.py instead of importing torch: 30 ms instead of seconds, and it works where
torch's own shared libraries cannot be loaded.
"""

import importlib.util
import pathlib
import runpy
import sys


def torch_info():
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        sys.exit("torch is not importable from " + sys.executable + ".\n")
    root = pathlib.Path(spec.origin).parent
    version = runpy.run_path(str(root / "version.py"))
    return root.as_posix(), version["__version__"], version.get("cuda") or ""


if __name__ == "__main__":
    print(*torch_info(), sep=";", end="")
