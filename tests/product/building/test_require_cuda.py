"""What becomes of tests on CUDA where there is none, and under SPARSE_ACCEL_REQUIRE_CUDA=1."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import require_cuda
import torch

from sparse_accel import _C

CASES = """
import pytest

@pytest.mark.parametrize("BACKEND", ["cpu", "cuda"])
def test_one(BACKEND):
    if BACKEND == "cuda":
        pytest.skip("no reason")

@pytest.mark.CUDA
@pytest.mark.xfail(reason="known", strict=True)
def test_known():
    assert False

def test_other():
    pytest.skip("somewhere else")
""".replace("BACKEND", "backend").replace("CUDA", "cuda")  # so that this file is not taken for one of those


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in turn: a device, and kernels in the module."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert require_cuda.missing() == f"torch {torch.__version__} sees no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has_cuda, text in ((False, "sparse_accel was built without CUDA"), (True, "")):
        monkeypatch.setattr(_C, "has_cuda", has_cuda)
        assert require_cuda.missing() == text


def with_conftest(folder: Path, missing: str, **env: str) -> str:
    """Output of pytest on CASES, where CUDA lacks `missing`."""
    (folder / "test_cases.py").write_text(CASES)
    fake = f"import require_cuda\nrequire_cuda.missing = lambda: {missing!r}\nfrom require_cuda import *\n"
    (folder / "conftest.py").write_text(fake)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = cuda\n")
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider"]
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(Path(require_cuda.__file__).parent),
        **env,
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return f"{done.stdout}{done.stderr}\nexit status {done.returncode}"


def test_without_cuda_its_tests_are_skipped(tmp_path: Path) -> None:
    output = with_conftest(tmp_path, "no device", SPARSE_ACCEL_REQUIRE_CUDA="0")
    assert "1 passed, 3 skipped" in output
    assert "exit status 0" in output


def test_required_cuda_that_is_missing_stops_the_run(tmp_path: Path) -> None:
    output = with_conftest(tmp_path, "no device", SPARSE_ACCEL_REQUIRE_CUDA="1")
    assert "SPARSE_ACCEL_REQUIRE_CUDA=1: no device" in output
    assert "exit status 4" in output
    assert "expected 1, 0 or nothing, got 'yes'" in with_conftest(tmp_path, "", SPARSE_ACCEL_REQUIRE_CUDA="yes")


def test_a_skip_on_required_cuda_is_a_failure(tmp_path: Path) -> None:
    output = with_conftest(tmp_path, "", SPARSE_ACCEL_REQUIRE_CUDA="1")
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed" in output
    assert "test_one[cuda] was skipped, and SPARSE_ACCEL_REQUIRE_CUDA=1 wants it to run: Skipped: no reason" in output
    assert "exit status 1" in output
    assert "1 passed, 2 skipped, 1 xfailed" in with_conftest(tmp_path, "", SPARSE_ACCEL_REQUIRE_CUDA="")
