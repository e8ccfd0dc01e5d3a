#include "plan.h"

#include <algorithm>
#include <cstring>

#include "ops/metric_step.h"
#include "ops/prox_sgd_step.h"
#include "ops/rmda_step.h"

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

// What tensor.name is, of a class whose attribute is a C function; anything else goes the usual way.
PyObject* get(const py::object& attribute, PyObject* tensor) {
  if (Py_TYPE(attribute.ptr()) == &PyGetSetDescr_Type) {
    const PyGetSetDef* const def = reinterpret_cast<PyGetSetDescrObject*>(attribute.ptr())->d_getset;
    return def->get(tensor, def->closure);
  }
  const descrgetfunc get = Py_TYPE(attribute.ptr())->tp_descr_get;
  return get(attribute.ptr(), tensor, reinterpret_cast<PyObject*>(Py_TYPE(tensor)));
}

// tensor.name(), likewise.
PyObject* call(const py::object& method, PyObject* tensor) {
  if (Py_TYPE(method.ptr()) == &PyMethodDescr_Type) {
    const PyMethodDef* const def = reinterpret_cast<PyMethodDescrObject*>(method.ptr())->d_method;
    if (def->ml_flags == METH_NOARGS) return def->ml_meth(tensor, nullptr);
  }
  return PyObject_CallOneArg(method.ptr(), tensor);
}

}  // namespace

StepPlan::StepPlan(py::dict everything, py::list group, const std::vector<Batch>& batches, std::vector<py::str> names,
                   std::string prox)
    : everything_(std::move(everything)),
      group_(std::move(group)),
      names_(std::move(names)),
      prox_(std::move(prox)),
      tensor_type_(py::module_::import("torch").attr("Tensor")),
      grad_(tensor_type_.attr("grad")),
      is_neg_(tensor_type_.attr("is_neg")) {
  for (const auto& [key, value] : everything_) {
    entries_.emplace_back(py::reinterpret_borrow<py::object>(key), py::reinterpret_borrow<py::object>(value));
  }
  for (const py::handle member : group_) members_.push_back(py::reinterpret_borrow<py::object>(member));
  for (const auto& [params, layouts, strengths] : batches) {
    const std::size_t number = params.size();
    if (layouts.size() != 4 * number || strengths.size() != number) {
      throw py::value_error("batches: expected four numbers and a strength for each parameter");
    }
    batches_.push_back(Views{params_.size(), layouts, strengths, Tensors(number), Tensors(number),
                             std::vector<Tensors>(names_.size(), Tensors(number))});
    for (const py::object& tensor : params) {
      DLTensor view;
      if (!py::isinstance(tensor, tensor_type_) || !read(tensor, view))
        throw py::type_error("params: expected dense tensors");
      Param param{tensor, view.dtype, view.device, {}, {}, {}, 0, {}};
      param.sizes.assign(view.shape, view.shape + view.ndim);
      param.strides.assign(view.strides, view.strides + view.ndim);
      param.state = everything_[tensor];
      param.state_size = PyDict_Size(param.state.ptr());
      for (const py::str& name : names_) param.tensors.push_back(param.state[name]);
      params_.push_back(std::move(param));
    }
  }
  std::vector<const PyObject*> taken;
  for (const Param& param : params_) taken.push_back(param.tensor.ptr());
  std::sort(taken.begin(), taken.end());
  for (const py::object& member : members_) {
    if (!std::binary_search(taken.begin(), taken.end(), member.ptr())) absent_.push_back(member);
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

bool StepPlan::read_param(const Param& param, Views& views, std::size_t at) {
  DLTensor view;
  if (!read(param.tensor, view) || !same_kind(view, param.dtype, param.device)) return false;
  if (view.ndim != std::int32_t(param.sizes.size()) || !same_numbers(view.shape, param.sizes) ||
      !same_numbers(view.strides, param.strides)) {
    return false;
  }
  views.params[at] = Tensor(view);
  if (PyDict_Size(param.state.ptr()) != param.state_size) return false;
  for (std::size_t i = 0; i < names_.size(); ++i) {
    PyObject* const tensor = param.tensors[i].ptr();
    if (PyDict_GetItemWithError(param.state.ptr(), names_[i].ptr()) != tensor || !read(tensor, view)) return false;
    views.state[i][at] = Tensor(view);
  }
  return true;
}

py::object StepPlan::read_grad(const Param& param, Tensor& out) {
  auto grad = py::reinterpret_steal<py::object>(get(grad_, param.tensor.ptr()));
  if (!grad) throw py::error_already_set();
  if (reinterpret_cast<PyObject*>(Py_TYPE(grad.ptr())) != tensor_type_.ptr()) return {};
  DLTensor view;
  if (!read(grad, view) || !same_kind(view, param.dtype, param.device)) return {};
  if (view.ndim != std::int32_t(param.sizes.size()) || !same_numbers(view.shape, param.sizes)) return {};
  const auto negative = py::reinterpret_steal<py::object>(call(is_neg_, grad.ptr()));
  if (!negative) throw py::error_already_set();
  if (negative.ptr() != Py_False) return {};
  out = Tensor(view);
  return grad;
}

py::object StepPlan::grads(py::handle everything, py::handle group) {
  read_ = nullptr;
  if (!same_state(everything, group)) return py::none();
  for (const py::object& member : absent_) {
    if (!member.attr("grad").is_none()) return py::none();
  }
  py::list out(params_.size());
  ordered_ = true;
  for (Views& views : batches_) {
    for (std::size_t i = 0; i < views.params.size(); ++i) {
      const std::size_t number = views.first + i;
      const Param& param = params_[number];
      py::object grad = read_param(param, views, i) ? read_grad(param, views.grads[i]) : py::object();
      if (!grad) return py::none();
      ordered_ = ordered_ && same_memory_order(views.grads[i], views.params[i]);
      PyList_SET_ITEM(out.ptr(), Py_ssize_t(number), grad.release().ptr());
    }
  }
  read_ = out.ptr();
  return out;
}

template <class Step>
bool StepPlan::run(const py::list& grads, std::size_t tensors_of_state, const Step& step) {
  if (grads.ptr() != read_) throw py::value_error("grads: expected the list that grads() has just given");
  if (names_.size() != tensors_of_state) throw py::value_error("the plan is of another step's state");
  read_ = nullptr;  // what was read holds for one step
  if (!ordered_) return false;
  const py::gil_scoped_release release;
  for (const Views& views : batches_) step(views);
  return true;
}

bool StepPlan::rmda_step_(py::list grads, double lr, double momentum, bool maximize) {
  return run(grads, 4, [&](const Views& v) {
    sparse_accel::rmda_step_(v.params, v.grads, v.state[0], v.state[1], v.state[2], v.state[3], v.layouts, prox_,
                             v.strengths, lr, {}, momentum, maximize, 1, {}, {});
  });
}

bool StepPlan::ramda_step_(py::list grads, double lr, double momentum, double eps, bool maximize) {
  return run(grads, 5, [&](const Views& v) {
    sparse_accel::ramda_step_(v.params, v.grads, v.state[0], v.state[1], v.state[2], v.state[3], v.state[4], v.layouts,
                              prox_, v.strengths, lr, {}, momentum, eps, maximize, 1, {}, {});
  });
}

bool StepPlan::prox_adamw_step_(py::list grads, double lr, double beta1, double beta2, double eps, double weight_decay,
                                bool maximize) {
  return run(grads, 3, [&](const Views& v) {
    sparse_accel::prox_adamw_step_(v.params, v.grads, v.state[0], v.state[1], v.state[2], v.layouts, prox_, v.strengths,
                                   lr, {}, beta1, beta2, eps, weight_decay, maximize, 1, {}, {});
  });
}

bool StepPlan::prox_sgd_step_(py::list grads, double lr, double rho, bool maximize) {
  return run(grads, 2, [&](const Views& v) {
    sparse_accel::prox_sgd_step_(v.params, v.grads, v.state[0], v.state[1], v.layouts, prox_, v.strengths, lr, {}, rho,
                                 maximize, 1, {}, {});
  });
}

}  // namespace sparse_accel
