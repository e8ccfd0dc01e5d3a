"""Tests that need a CUDA device: what marks them, and what happens where there is none.

A test on the backend ``cuda``, or marked ``cuda``, is skipped without a device and a module built with CUDA. Under
``SPARSE_ACCEL_REQUIRE_CUDA=1`` the run refuses to start without them, and a skip of such a test is a failure: a run on
a GPU machine cannot be green with nothing tested.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

VARIABLE = "SPARSE_ACCEL_REQUIRE_CUDA"


def required() -> bool:
    """Whether a missing device or module is an error; the variable is "1", or "0", empty or not set."""
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise pytest.UsageError(f"{VARIABLE}: expected 1, 0 or nothing, got {value!r}")
    return value == "1"


def missing() -> str:
    """What tests on CUDA lack here, in words; "" if nothing."""
    import torch

    from sparse_accel import _C

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    if not _C.has_cuda:
        return "sparse_accel was built without CUDA"
    return ""


def pytest_configure(config: pytest.Config) -> None:
    if required() and (reason := missing()):
        raise pytest.UsageError(f"{VARIABLE}=1: {reason}")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        call = getattr(item, "callspec", None)
        if call is not None and call.params.get("backend") == "cuda":
            item.add_marker(pytest.mark.cuda)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and (reason := missing()):
        pytest.skip(reason)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    outcome = yield
    report = outcome.get_result()
    if report.skipped and required() and item.get_closest_marker("cuda") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and {VARIABLE}=1 wants it to run: {reason}"
