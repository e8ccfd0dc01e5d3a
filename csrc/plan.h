#pragma once
// What an optimizer prepared for one step, and whether it still holds for the next: the same parameters in the same
// memory order, the same state, dense gradients of the parameters' dtype. Looking reads every tensor once, some 100 ns
// each, and the step that follows takes what was read; preparing anew in Python takes some 10 us for each parameter.
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "python.h"

namespace sparse_accel {

class StepPlan {
 public:
  // Parameters that take one step together, plain tensors of one dtype and device; how the penalty cuts them, 4 numbers
  // each; its strengths.
  using Batch = std::tuple<std::vector<pybind11::object>, std::vector<std::int64_t>, std::vector<double>>;

  // everything: the optimizer's state, a dictionary of a dictionary for each parameter. group: its list of parameters;
  // those in no batch have no gradient. names: of the tensors of state that the step takes, in the order of the op.
  StepPlan(pybind11::dict everything, pybind11::list group, const std::vector<Batch>& batches,
           std::vector<pybind11::str> names, std::string prox);

  // The gradients of the parameters, batch by batch; None where anything has changed.
  pybind11::object grads(pybind11::handle everything, pybind11::handle group);

  // The step of that name, with the tensors that grads() has just found: it wants the very list that grads() gave,
  // which keeps them alive. False, and nothing is done, where gradients lie in another memory order than their
  // parameters.
  bool rmda_step_(pybind11::list grads, double lr, double momentum, bool maximize);
  bool ramda_step_(pybind11::list grads, double lr, double momentum, double eps, bool maximize);
  bool prox_adamw_step_(pybind11::list grads, double lr, double beta1, double beta2, double eps, double weight_decay,
                        bool maximize);
  bool prox_sgd_step_(pybind11::list grads, double lr, double rho, bool maximize);

 private:
  using Tensors = std::vector<Tensor>;

  struct Param {
    pybind11::object tensor;
    DLDataType dtype;
    DLDevice device;
    std::vector<std::int64_t> sizes, strides;
    pybind11::dict state;
    Py_ssize_t state_size;
    std::vector<pybind11::object> tensors;  // of the state, by name
  };

  // What grads() has read, as the ops take it.
  struct Views {
    std::size_t first;  // of the plan's parameters
    std::vector<std::int64_t> layouts;
    std::vector<double> strengths;
    Tensors params, grads;
    std::vector<Tensors> state;  // by name
  };

  bool same_state(pybind11::handle everything, pybind11::handle group) const;
  bool read_param(const Param& param, Views& views, std::size_t at);
  pybind11::object read_grad(const Param& param, Tensor& out);  // null: none that fits
  template <class Step>
  bool run(const pybind11::list& grads, std::size_t tensors_of_state, const Step& step);

  pybind11::dict everything_;
  pybind11::list group_;
  std::vector<std::pair<pybind11::object, pybind11::object>> entries_;  // of everything, in order
  std::vector<pybind11::object> members_;                               // of the group, in order
  std::vector<pybind11::object> absent_;
  std::vector<Param> params_;
  std::vector<Views> batches_;
  std::vector<pybind11::str> names_;
  std::string prox_;
  const PyObject* read_ = nullptr;  // the list of gradients whose views are those of now
  bool ordered_ = false;            // all gradients lie as their parameters do
  pybind11::object tensor_type_;
  pybind11::object grad_, is_neg_;  // descriptors of the class: as attributes of tensors they take twice as long
};

}  // namespace sparse_accel
