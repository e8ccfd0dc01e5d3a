"""What this installation is: build_info()."""

from __future__ import annotations

import dataclasses
import platform

import torch

from . import _C, _build_info


@dataclasses.dataclass(frozen=True)
class BuildInfo:
    """Facts about the installed sparse_accel; `print` shows them as a table.

    Attributes:
        version: version of sparse_accel.
        commit: git commit of the build, ending in "-dirty" if the tree had changes; "" for a build from an archive.
        python: version of the running Python.
        torch_built: version of torch whose headers the compiled module was built with.
        torch_running: version of torch that is loaded.
        abi: what the compiled module asks of torch: any release that has it will do.
        cpu_capability: instruction set of the CPU kernels in use: "AVX512", "AVX2" or "DEFAULT".
        threads: number of threads of torch, which the CPU kernels use too.
        with_cuda: whether the CUDA kernels are compiled in.
        cuda_version: CUDA toolkit that compiled them, or "".
        cuda_architectures: architectures they are compiled for, such as ("80-real", "90").
        cuda_devices: names of the CUDA devices torch sees.
        compiler: C++ compiler and flags.
    """

    version: str
    commit: str
    python: str
    torch_built: str
    torch_running: str
    abi: str
    cpu_capability: str
    threads: int
    with_cuda: bool
    cuda_version: str
    cuda_architectures: tuple[str, ...]
    cuda_devices: tuple[str, ...]
    compiler: str

    def __str__(self) -> str:
        rows = [(field.name.replace("_", " "), getattr(self, field.name)) for field in dataclasses.fields(self)]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {_shown(value)}" for name, value in rows)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        value = ", ".join(value)
    return str(value) or "-"


def build_info() -> BuildInfo:
    """Version, build and run-time facts of this installation."""
    return BuildInfo(
        version=_build_info.version,
        commit=_build_info.commit,
        python=platform.python_version(),
        torch_built=_build_info.torch_version,
        torch_running=torch.__version__,
        abi=_C.abi,
        cpu_capability=_C.cpu_capability(),
        threads=torch.get_num_threads(),
        with_cuda=_build_info.with_cuda,
        cuda_version=_build_info.cuda_version,
        cuda_architectures=tuple(filter(None, _build_info.cuda_architectures.split(";"))),
        cuda_devices=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        compiler=_build_info.compiler,
    )
