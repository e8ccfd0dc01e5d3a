"""Backends and tolerances shared by the tests of ops."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import NamedTuple

import pytest
import require_cuda
import torch
from cuda_emulator import build
from two_ranks import keep_process_groups

from sparse_accel import native
from sparse_accel.report import compact as comparison

pytest_plugins = ["cli_fixtures"]
pytest_configure = require_cuda.pytest_configure
pytest_collection_modifyitems = require_cuda.pytest_collection_modifyitems
pytest_runtest_setup = require_cuda.pytest_runtest_setup
pytest_runtest_makereport = require_cuda.pytest_runtest_makereport

keep_process_groups()

gc.disable()  # until all is collected: ten thousand tests and what they import stay to the end


def pytest_collection_finish() -> None:
    """None of it is to be searched for garbage again and again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def brief_latencies() -> Iterator[None]:
    """Reports time a model once: what a model takes here is nobody's concern, and to know it well costs a third of a
    pruning run of these sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "latencies_ms", partial(comparison.latencies_ms, most=1))
        yield


class Backend(NamedTuple):
    """Where ops run: the compiled module behind ``sparse_accel.ops`` and the device of the tensors."""

    name: str
    device: torch.device


@pytest.fixture(params=["cpu", "cuda-emulated", "cuda"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Each backend in turn. ``cuda-emulated``: the CUDA kernels, run on CPU tensors by the emulator. ``cuda`` has the
    mark of that name (see require_cuda.py)."""
    name: str = request.param
    if name == "cuda-emulated":
        monkeypatch.setattr(native._module, "_C", build.load())
    return Backend(name, torch.device("cuda" if name == "cuda" else "cpu"))


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The emulated CUDA kernels, in place of the compiled module."""
    module = build.load()
    monkeypatch.setattr(native._module, "_C", module)
    return module
