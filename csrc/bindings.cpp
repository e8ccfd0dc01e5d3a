// The Python module: exposes the ops, releases the GIL, no logic.
#include <torch/headeronly/version.h>

#include "cpu/isa/kernel_set.h"
#include "ops/glm.h"
#include "ops/gram_obs.h"
#include "ops/group_score.h"
#include "ops/group_topk.h"
#include "ops/masked_cg.h"
#include "ops/metric_step.h"
#include "ops/prox.h"
#include "ops/prox_sgd_step.h"
#include "ops/rmda_step.h"
#include "ops/sparse_linear.h"
#include "ops/topk_threshold.h"
#include "plan.h"
#include "python.h"

namespace py = pybind11;

namespace {

const DLPackExchangeAPI* exchange_of(const py::module_& torch) {
  const py::object tensor = torch.attr("Tensor");
  if (!py::hasattr(tensor, "__dlpack_c_exchange_api__")) {
    throw py::import_error("sparse_accel needs torch 2.11 or later, got " +
                           std::string(py::str(torch.attr("__version__"))));
  }
  const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
  const auto* table = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (table == nullptr) throw py::error_already_set();
  // A later major version would be another struct, with older ones behind it.
  const DLPackExchangeAPIHeader* header = &table->header;
  while (header != nullptr && header->version.major != DLPACK_MAJOR_VERSION) header = header->prev_api;
  if (header == nullptr) {
    throw py::import_error("sparse_accel needs tensors that DLPack 1 can exchange, got DLPack " +
                           std::to_string(table->header.version.major));
  }
  return reinterpret_cast<const DLPackExchangeAPI*>(header);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using release_gil = py::call_guard<py::gil_scoped_release>;
  const auto torch = py::module_::import("torch");
  sparse_accel::set_exchange(exchange_of(torch));
  const auto capability = torch.attr("backends").attr("cpu").attr("get_cpu_capability")();
  sparse_accel::set_cpu_capability(capability.cast<std::string>());
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const sparse_accel::TypeError& type_error) {
      PyErr_SetString(PyExc_TypeError, type_error.what());
    }
  });
#ifdef SPARSE_ACCEL_WITH_CUDA
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
#ifdef SPARSE_ACCEL_EMULATED
  m.attr("emulated") = true;  // the CUDA kernels on CPU tensors
#else
  m.attr("emulated") = false;
#endif
  m.attr("torch_version") = TORCH_VERSION;  // of the headers
  m.attr("abi") =
      sparse_accel::message("torch 2.11 or later, DLPack ", DLPACK_MAJOR_VERSION, ".", DLPACK_MINOR_VERSION);
  m.def("cpu_capability", [] { return std::string(sparse_accel::cpu::kernel_set().name); });
  // Of this module alone: load_jit() and the tests load it again.
  py::class_<sparse_accel::StepPlan>(m, "StepPlan", py::module_local())
      .def(
          py::init<py::dict, py::list, std::vector<sparse_accel::StepPlan::Batch>, std::vector<py::str>, std::string>())
      .def("grads", &sparse_accel::StepPlan::grads)
      .def("rmda_step_", &sparse_accel::StepPlan::rmda_step_)
      .def("ramda_step_", &sparse_accel::StepPlan::ramda_step_)
      .def("prox_adamw_step_", &sparse_accel::StepPlan::prox_adamw_step_)
      .def("prox_sgd_step_", &sparse_accel::StepPlan::prox_sgd_step_);
  m.def("check_layouts", &sparse_accel::check_layouts);
  m.def("group_score", &sparse_accel::group_score, release_gil());
  m.def("group_topk", &sparse_accel::group_topk, release_gil());
  m.def("prox_", &sparse_accel::prox_, release_gil());
  m.def("check_glm_data", &sparse_accel::check_glm_data, release_gil());
  m.def("glm_prox", &sparse_accel::glm_prox, release_gil());
  m.def("glm_epoch_", &sparse_accel::glm_epoch_, release_gil());
  m.def("glm_terms", &sparse_accel::glm_terms, release_gil());
  m.def("glm_residual", &sparse_accel::glm_residual, release_gil());
  m.def("gram_obs_order", &sparse_accel::gram_obs_order);
  m.def("gram_obs_panel", &sparse_accel::gram_obs_panel, release_gil());
  m.def("rmda_step_", &sparse_accel::rmda_step_, release_gil());
  m.def("ramda_step_", &sparse_accel::ramda_step_, release_gil());
  m.def("prox_sgd_step_", &sparse_accel::prox_sgd_step_, release_gil());
  m.def("prox_adamw_step_", &sparse_accel::prox_adamw_step_, release_gil());
  m.def("masked_cg_rows", &sparse_accel::masked_cg_rows, release_gil());
  m.def("sparse_linear", &sparse_accel::sparse_linear, release_gil());
  m.def("sparse_unpack", &sparse_accel::sparse_unpack, release_gil());
  m.def("sparse_collect", &sparse_accel::sparse_collect, release_gil());
  m.def("sparse_finish", &sparse_accel::sparse_finish, release_gil());
  m.def("topk_rows", &sparse_accel::topk_rows, release_gil());
  m.def("topk_blocks", &sparse_accel::topk_blocks, release_gil());
  m.def("topk_as_it_is", &sparse_accel::topk_as_it_is, release_gil());
  m.def("topk_norms", &sparse_accel::topk_norms, release_gil());
  m.def("topk_within", &sparse_accel::topk_within, release_gil());
  m.def("topk_groups", &sparse_accel::topk_groups, release_gil());
}
