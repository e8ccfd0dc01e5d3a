"""The audit that lets a wheel out, and the script that tries one."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from sparse_accel import _C, _jit

ROOT = Path(__file__).resolve().parents[3]
AUDIT = runpy.run_path(str(ROOT / "tools" / "audit_wheel.py"))
MODULE = Path(_C.__file__ or "")


def test_the_module_takes_nothing_unstable_from_torch() -> None:
    lines, problems = AUDIT["audit"](MODULE)
    assert problems == []
    assert "  outside the stable interface: 0" in lines
    assert "libtorch_cpu.so" in AUDIT["needed"](MODULE)
    assert AUDIT["undefined"](MODULE) >= AUDIT["STABLE"]  # what is allowed is what is used


def test_a_module_of_torch_itself_does_not_pass() -> None:
    library = Path(torch.__file__).parent / "lib" / "libtorch_python.so"
    _, problems = AUDIT["audit"](library)
    assert any("c10::" in problem for problem in problems)
    assert any("links to libc10.so" in problem for problem in problems)


@pytest.mark.parametrize(
    "symbol, expected",
    [
        ("at::_ops::mm::call(at::Tensor const&, at::Tensor const&)", True),
        ("c10::detail::torchCheckFail(char const*)", True),
        ("bool const* at::TensorBase::const_data_ptr<bool>() const", True),
        ("torch::autograd::foo()", True),
        ("torch_parallel_for", True),
        ("aoti_torch_get_current_cuda_stream", True),
        ("cat::dog()", False),
        ("PyObject_GetAttr", False),
    ],
)
def test_symbols_of_torch_are_known(symbol: str, expected: bool) -> None:
    assert AUDIT["of_torch"](symbol) is expected


def test_policies() -> None:
    policy = AUDIT["policy"]
    assert policy({"GLIBC": (2, 27), "GLIBCXX": (3, 4, 22)}) == "manylinux_2_28"
    assert policy({"GLIBC": (2, 32), "CXXABI": (1, 3, 11)}) == "manylinux_2_34"
    assert policy({"GLIBC": (3, 0)}) is None


def test_a_wheel_is_audited_and_named(tmp_path: Path) -> None:
    wheel = tmp_path / "sparse_accel-0.1.0-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(MODULE, f"sparse_accel/{MODULE.name}")
    lines, problems, tag = AUDIT["audit_wheel"](wheel)
    assert (problems, tag is None) == ([], False)
    assert lines[0] == f"{MODULE.name}:"
    empty = tmp_path / "empty.whl"
    zipfile.ZipFile(empty, "w").close()
    assert AUDIT["audit_wheel"](empty)[1] == ["has no compiled module"]


def test_every_op_runs(tmp_path: Path) -> None:
    script = str(ROOT / "tools" / "run_ops.py")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "abi                 torch 2.11 or later, DLPack 1." in done.stdout


def test_headers_of_torchs_algebra_are_not_included() -> None:
    """What compiles without them cannot link to them."""
    allowed = {"ATen/dlpack.h", "ATen/cpu/vec/functional.h", "ATen/cpu/vec/vec.h"}
    for path in _jit.source_dir().rglob("*.[hc]*"):
        for line in path.read_text(encoding="utf-8").splitlines():
            name = line.partition("<")[2].partition(">")[0] if line.startswith("#include <") else ""
            if name.startswith(("ATen/", "c10/", "torch/")):
                stable = name.startswith(("torch/headeronly/", "torch/csrc/stable/c/"))
                assert stable or name in allowed, f"{os.path.relpath(path, ROOT)}: {line}"
