#include "plan.h"

#include <algorithm>
#include <cstring>

namespace py = pybind11;

namespace sparse_accel {
namespace {

bool read(py::handle object, DLTensor& view) {
  if (exchange().dltensor_from_py_object_no_sync(object.ptr(), &view) == 0) return true;
  PyErr_Clear();
  return false;
}

bool same_kind(const DLTensor& view, const DLDataType& dtype, const DLDevice& device) {
  return view.dtype.code == dtype.code && view.dtype.bits == dtype.bits && view.dtype.lanes == dtype.lanes &&
         view.device.device_type == device.device_type && view.device.device_id == device.device_id;
}

bool same_numbers(const std::int64_t* numbers, const std::vector<std::int64_t>& expected) {
  return expected.empty() || std::memcmp(numbers, expected.data(), expected.size() * sizeof(std::int64_t)) == 0;
}

}  // namespace

StepPlan::StepPlan(py::dict everything, py::list group, std::vector<py::object> params, std::vector<py::str> names)
    : everything_(std::move(everything)),
      group_(std::move(group)),
      names_(std::move(names)),
      tensor_type_(py::module_::import("torch").attr("Tensor")),
      grad_name_("grad"),
      is_neg_("is_neg") {
  for (const auto& [key, value] : everything_) {
    entries_.emplace_back(py::reinterpret_borrow<py::object>(key), py::reinterpret_borrow<py::object>(value));
  }
  for (const py::handle member : group_) members_.push_back(py::reinterpret_borrow<py::object>(member));
  for (const py::object& member : members_) {
    const auto is_member = [&](const py::object& param) { return param.is(member); };
    if (std::none_of(params.begin(), params.end(), is_member)) absent_.push_back(member);
  }
  for (const py::object& tensor : params) {
    DLTensor view;
    if (!read(tensor, view)) throw py::type_error("params: expected dense tensors");
    Param param{tensor, view.dtype, view.device, {}, {}, {}, 0, {}};
    param.sizes.assign(view.shape, view.shape + view.ndim);
    param.strides.assign(view.strides, view.strides + view.ndim);
    param.state = everything_[tensor];
    param.state_size = PyDict_Size(param.state.ptr());
    for (const py::str& name : names_) param.tensors.push_back(param.state[name]);
    params_.push_back(std::move(param));
  }
}

bool StepPlan::same_state(py::handle everything, py::handle group) const {
  if (!everything.is(everything_) || PyDict_Size(everything_.ptr()) != Py_ssize_t(entries_.size())) return false;
  if (!group.is(group_) || PyList_GET_SIZE(group_.ptr()) != Py_ssize_t(members_.size())) return false;
  for (std::size_t i = 0; i < members_.size(); ++i) {
    if (PyList_GET_ITEM(group_.ptr(), Py_ssize_t(i)) != members_[i].ptr()) return false;
  }
  PyObject *key, *value;
  Py_ssize_t at = 0;
  for (const auto& [known, state] : entries_) {
    if (!PyDict_Next(everything_.ptr(), &at, &key, &value) || key != known.ptr() || value != state.ptr()) return false;
  }
  return true;
}

bool StepPlan::same(const Param& param) const {
  DLTensor view;
  if (!read(param.tensor, view) || !same_kind(view, param.dtype, param.device)) return false;
  if (view.ndim != std::int32_t(param.sizes.size()) || !same_numbers(view.shape, param.sizes) ||
      !same_numbers(view.strides, param.strides)) {
    return false;
  }
  if (PyDict_Size(param.state.ptr()) != param.state_size) return false;
  for (std::size_t i = 0; i < names_.size(); ++i) {
    if (PyDict_GetItemWithError(param.state.ptr(), names_[i].ptr()) != param.tensors[i].ptr()) return false;
  }
  return true;
}

py::object StepPlan::grad_of(const Param& param) const {
  auto grad = py::reinterpret_steal<py::object>(PyObject_GetAttr(param.tensor.ptr(), grad_name_.ptr()));
  if (!grad) throw py::error_already_set();
  if (reinterpret_cast<PyObject*>(Py_TYPE(grad.ptr())) != tensor_type_.ptr()) return {};
  DLTensor view;
  if (!read(grad, view) || !same_kind(view, param.dtype, param.device)) return {};
  if (view.ndim != std::int32_t(param.sizes.size()) || !same_numbers(view.shape, param.sizes)) return {};
  const auto negative = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(grad.ptr(), is_neg_.ptr()));
  if (!negative) throw py::error_already_set();
  return negative.ptr() == Py_False ? grad : py::object();
}

py::object StepPlan::grads(py::handle everything, py::handle group) const {
  if (!same_state(everything, group)) return py::none();
  for (const py::object& member : absent_) {
    if (!py::getattr(member, grad_name_).is_none()) return py::none();
  }
  py::list out(params_.size());
  for (std::size_t i = 0; i < params_.size(); ++i) {
    py::object grad = same(params_[i]) ? grad_of(params_[i]) : py::object();
    if (!grad) return py::none();
    PyList_SET_ITEM(out.ptr(), Py_ssize_t(i), grad.release().ptr());
  }
  return out;
}

}  // namespace sparse_accel
