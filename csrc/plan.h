#pragma once
// What an optimizer prepared for one step, and whether it still holds for the next: the same parameters in the same
// memory order, the same state, dense gradients of the parameters' dtype. Looking takes some 100 ns for each tensor,
// where preparing anew in Python takes some 10 us.
#include <utility>
#include <vector>

#include "python.h"

namespace sparse_accel {

class StepPlan {
 public:
  // everything: the optimizer's state, a dictionary of a dictionary for each parameter. group: its list of parameters.
  // params: those of them that take the step, plain tensors; the others have no gradient. names: of the tensors of
  // state that the step takes.
  StepPlan(pybind11::dict everything, pybind11::list group, std::vector<pybind11::object> params,
           std::vector<pybind11::str> names);

  // The gradients of params, or None where anything has changed.
  pybind11::object grads(pybind11::handle everything, pybind11::handle group) const;

 private:
  struct Param {
    pybind11::object tensor;
    DLDataType dtype;
    DLDevice device;
    std::vector<std::int64_t> sizes, strides;
    pybind11::dict state;
    Py_ssize_t state_size;
    std::vector<pybind11::object> tensors;  // of the state, by name
  };

  bool same_state(pybind11::handle everything, pybind11::handle group) const;
  bool same(const Param& param) const;
  pybind11::object grad_of(const Param& param) const;  // null: none that fits

  pybind11::dict everything_;
  pybind11::list group_;
  std::vector<std::pair<pybind11::object, pybind11::object>> entries_;  // of everything, in order
  std::vector<pybind11::object> members_;                               // of the group, in order
  std::vector<pybind11::object> absent_;
  std::vector<Param> params_;
  std::vector<pybind11::str> names_;
  pybind11::object tensor_type_;
  pybind11::str grad_name_, is_neg_;
};

}  // namespace sparse_accel
