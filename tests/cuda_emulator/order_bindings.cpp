// A second Python module in the emulated library, for what only the emulator has.
#include <pybind11/pybind11.h>

#include <string>

#include "cuda_emulator.h"

namespace py = pybind11;

namespace {

void set_order(const std::string& order, std::uint64_t seed) {
  const std::string text = order == "random" ? order + ":" + std::to_string(seed) : order;
  if (!emu::config.set(text.c_str())) {
    throw py::value_error("order: expected 'forward', 'reverse' or 'random', got '" + order + "'");
  }
}

void set_clusters(unsigned blocks) {
  if (blocks > emu::kMaxCluster) {
    throw py::value_error("blocks: expected 0 (no clusters) to 8, got " + std::to_string(blocks));
  }
  emu::config.clusters = blocks;
}

__global__ void broken_kernel() {
  if (threadIdx.x == 0) __syncthreads();
}

// For the test that the emulator's errors reach Python.
void launch_broken_kernel() { launch_kernel(broken_kernel, 1, 32, 0, nullptr); }

}  // namespace

PYBIND11_MODULE(_emulator, m) {
  m.def("set_order", &set_order, py::arg("order"), py::arg("seed") = 1);
  m.def("launches", [] { return emu::engine.launches(); });
  m.def("set_clusters", &set_clusters, py::arg("blocks"));
  m.def("launch_broken_kernel", &launch_broken_kernel);
}
