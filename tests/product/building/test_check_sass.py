"""What tools/check_sass.py finds in machine code, on small kernels of its own."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOOL = ROOT / "tools" / "check_sass.py"
CHECK = runpy.run_path(str(TOOL))
LIMITS = dict.fromkeys(("wide", "narrow", "one_by_one", "spilled"), (32, 2, 0)) | {"greedy": (8, 2, 0)}
# Two packs in flight; the same with a planted 4-byte load; one after the other; an array that lives in local memory.
SOURCE = """
__device__ __forceinline__ void put(uint4* to, uint4 a, uint4 b) {
  *to = make_uint4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
__global__ void wide(const uint4* a, uint4* to) {
  put(to + threadIdx.x, a[threadIdx.x], a[threadIdx.x + blockDim.x]);
}
__global__ void greedy(const uint4* a, uint4* to) {
  put(to + threadIdx.x, a[threadIdx.x], a[threadIdx.x + blockDim.x]);
}
__global__ void narrow(const uint4* a, uint4* to) {
  const unsigned x = reinterpret_cast<const unsigned*>(a)[threadIdx.x];
  put(to + threadIdx.x, make_uint4(x, x, x, x), a[threadIdx.x + blockDim.x]);
}
__global__ void one_by_one(const uint4* a, uint4* to) {
  const uint4 x = a[threadIdx.x];
  put(to + threadIdx.x, x, a[x.x]);
}
__global__ void spilled(const uint4* a, uint4* to, int i) {
  unsigned held[16];
  for (int k = 0; k < 16; ++k) held[k] = a[k].x;
  for (int k = 0; k < i; ++k) held[a[k].y % 16] += held[a[k].z % 16];
  const unsigned x = held[i % 16];
  put(to + threadIdx.x, a[threadIdx.x], make_uint4(x, x, x, x));
}
"""


def test_narrow_loads_spills_and_registers_are_found(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    source, found = tmp_path / "kernels.cu", tmp_path / "kernels.cu.o"
    source.write_text(SOURCE)
    subprocess.run([nvcc, "-arch=sm_80", "--no-compress", "-c", source, "-o", found], check=True)
    rows, wrong = CHECK["check"](tmp_path, LIMITS)
    assert {(name, architecture) for name, architecture, *_ in rows} == {(name, 80) for name in LIMITS}
    text = "\n".join(sorted(line.split(" ", 1)[1] for line in wrong))
    assert "wide" not in text, text
    assert "narrow: 1 16-byte loads in flight, expected at least 2" in text
    assert "one_by_one: 1 16-byte loads in flight, expected at least 2" in text
    assert "spilled: 64 bytes of stack" in text
    assert "greedy: " in text
    assert "registers, expected at most 8" in text
    done = subprocess.run([sys.executable, TOOL, found], capture_output=True, text=True)  # with the product's table
    assert done.returncode == 1
    assert "sm_80 spilled: 64 bytes of stack" in done.stdout


def test_a_folder_without_machine_code_is_an_error(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, TOOL, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert "no object of a .cu file with code for a GPU" in done.stderr
