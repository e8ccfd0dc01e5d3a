// The Python module: exposes the ops, releases the GIL, no logic.
// Not <torch/extension.h>: this is all a binding needs and compiles three times faster.
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include "cpu/isa/kernel_set.h"
#include "ops/glm_epoch.h"
#include "ops/glm_prox.h"
#include "ops/gram_obs.h"
#include "ops/group_score.h"
#include "ops/group_topk.h"
#include "ops/masked_cg.h"
#include "ops/metric_step.h"
#include "ops/prox.h"
#include "ops/rmda_step.h"
#include "ops/sparse_linear.h"
#include "ops/topk_threshold.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using release_gil = py::call_guard<py::gil_scoped_release>;
#ifdef SPARSE_ACCEL_WITH_CUDA
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
  m.attr("torch_version") = TORCH_VERSION;
  m.def("cpu_capability", [] { return std::string(sparse_accel::cpu::kernel_set().name); });
  m.def("group_score", &sparse_accel::group_score, release_gil());
  m.def("group_topk", &sparse_accel::group_topk, release_gil());
  m.def("prox_", &sparse_accel::prox_, release_gil());
  m.def("glm_prox", &sparse_accel::glm_prox, release_gil());
  m.def("glm_epoch_", &sparse_accel::glm_epoch_, release_gil());
  m.def("gram_obs", &sparse_accel::gram_obs, release_gil());
  m.def("rmda_step_", &sparse_accel::rmda_step_, release_gil());
  m.def("ramda_step_", &sparse_accel::ramda_step_, release_gil());
  m.def("prox_adamw_step_", &sparse_accel::prox_adamw_step_, release_gil());
  m.def("masked_cg", &sparse_accel::masked_cg, release_gil());
  m.def("sparse_linear", &sparse_accel::sparse_linear, release_gil());
  m.def("sparse_unpack", &sparse_accel::sparse_unpack, release_gil());
  m.def("sparse_collect", &sparse_accel::sparse_collect, release_gil());
  m.def("topk_threshold_", &sparse_accel::topk_threshold_, release_gil());
}
