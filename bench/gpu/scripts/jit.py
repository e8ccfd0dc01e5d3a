"""jit.py FOLDER ROOT: build csrc/ with CUDA by torch.utils.cpp_extension into FOLDER, and its _build_info.py."""

import importlib.util
import os
import re
import sys
from pathlib import Path

import torch

folder, root = Path(sys.argv[1]), Path(sys.argv[2])
spec = importlib.util.spec_from_file_location("_jit", root / "sparse_accel" / "_jit.py")
assert spec is not None
assert spec.loader is not None
jit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(jit)  # by path: sparse_accel itself cannot be imported before it is built
major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
os.environ["TORCH_CUDA_ARCH_LIST"] = f"{major}.{minor}"
module = jit.load_jit(with_cuda=True, name="_C", build_directory=str(folder), verbose=True)
assert module.has_cuda
version = re.search(r'^version = "(.*)"$', (root / "pyproject.toml").read_text(), re.MULTILINE)
assert version is not None
facts = {
    "version": version[1],
    "commit": "",
    "torch_version": str(torch.__version__),
    "torch_cuda": torch.version.cuda,
    "with_cuda": True,
    "cuda_version": torch.version.cuda,
    "cuda_architectures": f"{major}{minor}-real",
    "compiler": "torch.utils.cpp_extension -O2",
}
(folder / "_build_info.py").write_text("".join(f"{name} = {value!r}\n" for name, value in facts.items()))
