"""What tools/check_sass.py finds in machine code, on small kernels of its own and on one that works in clusters."""

from __future__ import annotations

import functools
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

# One body for the kernel that works in clusters, in float: x is a + b, the result goes to a.
CLUSTER = """
#include "cluster.cuh"
namespace sparse_accel::cuda {
struct SumBody {
  using Element = float;
  struct Options { Prox prox; };
  struct Entry { Target<float> target; float *a, *b; float tau; };
  __device__ SumBody(const Options& options, const Entry& entry, std::int64_t start)
      : prox(options.prox), tau(entry.tau), a_(entry.a + start), b_(entry.b + start) {}
  __device__ bool skip() const { return false; }
  static constexpr int kPacks = 2;
  template <int N> struct Loaded { Pack<float, N> a, b; };
  template <int N> __device__ __forceinline__ Loaded<N> load_first(std::int64_t at) const {
    return {load<N>(a_ + at), load<N>(b_ + at)};
  }
  template <int N> __device__ __forceinline__ Loaded<N> load_last(std::int64_t) const { return {}; }
  template <int N> __device__ __forceinline__ Pack<float, N> first(std::int64_t, const Loaded<N>& loaded) const {
    Pack<float, N> x;
    for (int k = 0; k < N; ++k) x.value[k] = loaded.a.value[k] + loaded.b.value[k];
    return x;
  }
  template <int N>
  __device__ __forceinline__ void write(std::int64_t at, const Pack<float, N>& x, const Loaded<N>&) const {
    store<N>(a_ + at, x);
  }
  const Prox prox;
  const float tau;
 private:
  float *const a_, *const b_;
};
void launch(BodyTable<SumBody> table) {
  const ClusterLimits limits = cluster_limits<shrink_strips_kernel<SumBody>>();
  launch_cluster(shrink_strips_kernel<SumBody>, 8, kThreads, limits.blocks, limits.shared, nullptr, true, table);
}
}  // namespace sparse_accel::cuda
"""
ARRIVE, WAIT = 0x9C7, 0xDC7  # the codes of UCGABAR_ARV and UCGABAR_WAIT
NEXT_MAY_START, WAIT_FOR_LAST = 0x82D, 0x82E  # PREEXIT and ACQBULK
FENCE, BEYOND_THE_BLOCK = 0x992, 0x3000  # MEMBAR, and its scopes in the upper half


@functools.cache
def nvcc() -> str:
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        pytest.skip("needs nvcc")
    return found


def test_clusters_compile_for_cards_that_have_them(tmp_path: Path) -> None:
    """CI compiles the sources for sm_80, where a cluster is one block; here the barriers and addresses of sm_90."""
    source, found = tmp_path / "clusters.cu", tmp_path / "clusters.cu.o"
    source.write_text(CLUSTER)
    flags = ["-std=c++17", "--expt-relaxed-constexpr", "--expt-extended-lambda", "-Werror=all-warnings"]
    folders = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'cuda'}"]
    command = [nvcc(), *flags, *folders, "-arch=sm_90", "--no-compress", "-c", source, "-o", found]
    subprocess.run(command, check=True)
    rows, wrong = CHECK["check"](tmp_path, {"shrink_strips_kernel<SumBody": (64, 4, 0)})
    assert [row[1] for row in rows] == [90]
    assert not wrong, wrong
    (image,) = CHECK["cubins"](found)
    (kernel,) = image.kernels.values()
    operations = [low & 0xFFF for low, _ in kernel["code"]]
    assert operations.count(ARRIVE) == operations.count(WAIT) == 2
    assert NEXT_MAY_START in operations
    assert WAIT_FOR_LAST in operations
    fences = [high & BEYOND_THE_BLOCK for low, high in kernel["code"] if low & 0xFFF == FENCE]
    assert not any(fences), "a barrier waits for all stores to global memory"


def test_narrow_loads_spills_and_registers_are_found(tmp_path: Path) -> None:
    source, found = tmp_path / "kernels.cu", tmp_path / "kernels.cu.o"
    source.write_text(SOURCE)
    subprocess.run([nvcc(), "-arch=sm_80", "--no-compress", "-c", source, "-o", found], check=True)
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
