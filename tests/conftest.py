"""Backends and tolerances shared by the tests of ops."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from cuda_emulator import build

from sparse_accel import ops


class Backend(NamedTuple):
    """Where ops run: the native module behind ``sparse_accel.ops`` and the device of the tensors."""

    name: str
    device: torch.device


@pytest.fixture(params=["cpu", "cuda-emulated", "cuda"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Each backend in turn. ``cuda-emulated``: the CUDA kernels, run on CPU tensors by the emulator."""
    name: str = request.param
    if name == "cuda" and not (torch.cuda.is_available() and ops._library._C.has_cuda):
        pytest.skip("no CUDA device, or sparse_accel was built without CUDA")
    if name == "cuda-emulated":
        monkeypatch.setattr(ops._library, "_C", build.load())
    return Backend(name, torch.device("cuda" if name == "cuda" else "cpu"))
