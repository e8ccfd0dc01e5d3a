"""The CPU kernels of sparse_linear over lanes of every width, under sanitizers; and the op under every instruction set
that this processor has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_emulator import build

HERE = Path(__file__).parent
LEVELS = ["DEFAULT", "AVX2", "AVX512"]
AVX2 = ["-mavx2", "-mbmi2", "-mfma", "-mf16c"]
FLAGS = {"DEFAULT": [], "AVX2": AVX2, "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", *AVX2]}


def has(capability: str) -> bool:
    return LEVELS.index(capability) <= LEVELS.index(torch.backends.cpu.get_cpu_capability())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lanes", "capability"), [("PlainLanes<16>", "DEFAULT"), ("Lanes", "AVX2"), ("Lanes", "AVX512")]
)
def test_kernels_match_plain_loops(tmp_path: Path, lanes: str, capability: str) -> None:
    """Plain lanes of 16 stand in for those of AVX-512, everywhere."""
    if not has(capability):
        pytest.skip(f"needs a CPU with {capability}")
    flags = [
        "-std=c++20", "-O0", "-Wall", "-Wextra", "-Wno-maybe-uninitialized", "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all", f"-I{build.CSRC}", f"-DCPU_CAPABILITY={capability}",
        f"-DCPU_CAPABILITY_{capability}", f"-DLANES={lanes}", *FLAGS[capability],
    ]  # fmt: skip
    program = tmp_path / "lanes"
    try:
        build.run_compiler([*flags, HERE / "lanes.cpp", "-o", program])
    except RuntimeError as error:
        if "unrecognized" in str(error) or "cannot find" in str(error):  # another architecture, no sanitizer
            pytest.skip(str(error).splitlines()[1])
        raise
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout == "all correct\n"


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2", "AVX512"])
def test_every_instruction_set(capability: str) -> None:
    if not has(capability):
        pytest.skip(f"needs a CPU with {capability}")
    code = """
import torch
from sparse_accel import ops
assert ops.cpu_capability() == {capability!r}, ops.cpu_capability()
torch.manual_seed(0)
for dtype, allowed in ((torch.float32, 2e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)):
    weight = (torch.randn(77, 600) * (torch.rand(77, 600) < 0.4)).to(dtype)
    for int8 in (False, True):
        packed = ops.Bitmask.pack(weight, int8=int8)
        dense = packed.unpack().double()
        for batch in (1, 2, 4, 5, 40):
            x = torch.randn(batch, 600).to(dtype)
            found, expected = ops.sparse_linear(x, packed).double(), x.double() @ dense.t()
            error = ((found - expected).abs().max() / (x.double().abs() @ dense.abs().t()).max()).item()
            assert error <= allowed, (dtype, int8, batch, error)
print("good")
"""
    done = subprocess.run(
        [sys.executable, "-c", code.replace("{capability!r}", repr(capability))],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability.lower()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "good\n", done.stderr[-2000:]
