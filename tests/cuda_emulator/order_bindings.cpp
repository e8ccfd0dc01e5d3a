// A second Python module in the emulated library, for what only the emulator has.
#include <torch/csrc/utils/pybind.h>

#include "cuda_emulator.h"

namespace {

void set_order(const std::string& order, std::uint64_t seed) {
  const std::string text = order == "random" ? order + ":" + std::to_string(seed) : order;
  if (!emu::config.set(text.c_str())) {
    throw py::value_error("order: expected 'forward', 'reverse' or 'random', got '" + order + "'");
  }
}

}  // namespace

PYBIND11_MODULE(_emulator, m) {
  m.def("set_order", &set_order, py::arg("order"), py::arg("seed") = 1);
}
