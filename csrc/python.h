#pragma once
// From Python objects to the ops' arguments: tensors through the exchange table of their class, which reads a tensor in
// some 100 ns, holds nothing and waits for nothing.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <vector>

#include "tensor.h"
#include "torch_runtime.h"

namespace sparse_accel {

// Of a torch.Tensor; false for anything else.
inline bool view_of(pybind11::handle object, Tensor& out) {
  namespace py = pybind11;
  DLTensor view;
  if (exchange().dltensor_from_py_object_no_sync(object.ptr(), &view) == 0) {
    out = Tensor(view);
    return true;
  }
  PyErr_Clear();
  if (!py::hasattr(object, "layout") || !py::hasattr(object, "device") || !py::hasattr(object, "shape")) return false;
  auto opaque = std::make_shared<Tensor::Opaque>();
  const auto text = [&](const char* name) { return std::string(py::str(object.attr(name))); };
  const auto bare = [](const std::string& name) { return name.starts_with("torch.") ? name.substr(6) : name; };
  opaque->device = text("device");
  opaque->layout = bare(text("layout"));
  for (const py::handle size : object.attr("shape")) opaque->sizes.push_back(size.cast<std::int64_t>());
  opaque->type = ScalarType::other;
  const std::string dtype = bare(text("dtype"));
  for (int i = 0; i < int(ScalarType::other); ++i) {
    if (dtype == name_of(ScalarType(i))) opaque->type = ScalarType(i);
  }
  out = Tensor(std::move(opaque));
  return true;
}

}  // namespace sparse_accel

namespace pybind11::detail {

template <>
struct type_caster<sparse_accel::Tensor> {
  PYBIND11_TYPE_CASTER(sparse_accel::Tensor, const_name("torch.Tensor"));
  bool load(handle source, bool) { return sparse_accel::view_of(source, value); }
};

// A list of tensors, of which a copy keeps them alive while other threads run.
template <>
struct type_caster<std::vector<sparse_accel::Tensor>> {
  PYBIND11_TYPE_CASTER(std::vector<sparse_accel::Tensor>, const_name("list[torch.Tensor]"));
  bool load(handle source, bool) {
    if (!PyList_Check(source.ptr()) && !PyTuple_Check(source.ptr())) return false;
    held = reinterpret_steal<object>(PySequence_Tuple(source.ptr()));
    const Py_ssize_t number = PyTuple_GET_SIZE(held.ptr());
    value.resize(std::size_t(number));
    for (Py_ssize_t i = 0; i < number; ++i) {
      if (!sparse_accel::view_of(PyTuple_GET_ITEM(held.ptr(), i), value[std::size_t(i)])) return false;
    }
    return true;
  }

 private:
  object held;
};

}  // namespace pybind11::detail
