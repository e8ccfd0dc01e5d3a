"""The compiled module, in whose place tests put the emulated CUDA kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_accel import _C

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def kernels() -> Any:
    """The compiled module."""
    return _C


def has_cuda() -> bool:
    """Whether the CUDA kernels are compiled in."""
    return bool(_C.has_cuda)


def cpu_capability() -> str:
    """The instruction set of the CPU kernels in use."""
    return str(_C.cpu_capability())


def on_cuda(tensor: Tensor) -> bool:
    """Whether the tensor's kernels are those of CUDA."""
    return bool(_C.emulated) if tensor.is_cpu else bool(_C.has_cuda and tensor.is_cuda)


def check_device(op: str, name: str, tensor: Tensor) -> None:
    """Raise where there are no kernels for a tensor's device."""
    if not tensor.is_cpu and not on_cuda(tensor):
        raise RuntimeError(f"{op}: {name}: expected a CPU or (in a CUDA build) CUDA tensor, got {tensor.device}")


def compute_type(dtype: torch.dtype) -> torch.dtype:
    """In which sums are taken."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_dtype(op: str, name: str, tensor: Tensor, expected: Sequence[torch.dtype]) -> None:
    """Raise a TypeError that names the argument."""
    if tensor.dtype not in expected:
        names = [shown(dtype) for dtype in expected]
        joined = " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        raise TypeError(f"{op}: {name}: expected {joined}, got {shown(tensor.dtype)}")


def shown(dtype: torch.dtype | torch.layout) -> str:
    """Without "torch."."""
    return str(dtype).removeprefix("torch.")


def same_memory_order(a: Tensor, b: Tensor) -> bool:
    """Same shape and same strides, but for dimensions of size 1."""
    if a.shape != b.shape:
        return False
    if a.stride() == b.stride() or a.numel() == 0:
        return True
    return all(size == 1 or i == j for size, i, j in zip(a.shape, a.stride(), b.stride(), strict=True))


def product(numbers: Sequence[int]) -> int:
    """Of no number: 1."""
    return math.prod(numbers)
