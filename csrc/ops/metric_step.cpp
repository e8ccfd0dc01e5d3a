#include "metric_step.h"

#include "../cpu/isa/kernel_set.h"
#include "../cpu/metric_step/metric_step_run.h"
#include "common.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/metric_step_ops_cuda.h"
#endif

namespace sparse_accel {
namespace {

using Tensors = std::vector<at::Tensor>;

// What both ops are called with, under their own names.
struct MetricCall {
  const char* op;
  const Tensors& params;
  const Tensors& grads;
  const Tensors& duals;
  const Tensors& squares;
  const Tensors* anchors;  // RAMDA
  const Tensors& steps;
  const Tensors* alphas;  // RAMDA
  const char* dual_name;
  const char* square_name;
  const std::vector<double>& strengths;
  const std::optional<at::Tensor>& lr_tensor;
  const std::optional<at::Tensor>& grad_scale;
  const std::optional<at::Tensor>& found_inf;
};

void check_strides(const MetricCall& c, const char* name, const Tensors& state, size_t i) {
  TORCH_CHECK_VALUE(same_memory_order(state[i], c.params[i]), c.op, ": ", name, "[", i,
                    "]: expected the strides of the parameter, ", c.params[i].strides(), ", got ", state[i].strides());
}

// All but the numbers that only one of the ops has. Returns the gradients in their parameters' memory order.
Tensors check_call(const MetricCall& c) {
  const auto dtype = c.params[0].scalar_type();
  check_state(c.op, "grads", c.grads, c.params, dtype);
  check_state(c.op, c.dual_name, c.duals, c.params, compute_type(dtype));
  check_state(c.op, c.square_name, c.squares, c.params, compute_type(dtype));
  if (c.anchors) check_state(c.op, "anchors", *c.anchors, c.params, compute_type(dtype));
  const at::Device clocks = c.steps.empty() ? c.params[0].device() : c.steps[0].device();
  check_clocks(c.op, "steps", c.steps, c.params, clocks, at::kFloat);
  if (c.alphas) check_clocks(c.op, "alphas", *c.alphas, c.params, clocks, at::kDouble);
  check_one_element(c.op, "lr", c.lr_tensor);
  check_one_element(c.op, "grad_scale", c.grad_scale);
  check_one_element(c.op, "found_inf", c.found_inf);
  TORCH_CHECK_VALUE(c.strengths.size() == c.params.size(), c.op, ": strengths: expected one for each of ",
                    c.params.size(), " parameters, got ", c.strengths.size());
  for (size_t i = 0; i < c.params.size(); ++i) {
    TORCH_CHECK_VALUE(c.strengths[i] >= 0, c.op, ": strengths[", i, "]: expected a number >= 0, got ", c.strengths[i]);
    check_strides(c, c.dual_name, c.duals, i);
    check_strides(c, c.square_name, c.squares, i);
    if (c.anchors) check_strides(c, "anchors", *c.anchors, i);
  }
  return in_memory_order(c.grads, c.params);
}

void check_number(const char* op, const char* name, double value, bool fits, const char* expected) {
  TORCH_CHECK_VALUE(fits, op, ": ", name, ": expected ", expected, ", got ", value);
}

void check_on_cpu(const MetricCall& c) {
  TORCH_CHECK(c.params[0].is_cpu(), c.op, ": params: expected CPU or (in a CUDA build) CUDA tensors, got ",
              c.params[0].device());
}

MetricTask task_of(const MetricCall& c, const Tensors& grads, size_t i, Prox prox) {
  MetricTask task{};
  task.param = c.params[i].mutable_data_ptr();
  task.grad = grads[i].const_data_ptr();
  task.dual = c.duals[i].mutable_data_ptr();
  task.square = c.squares[i].mutable_data_ptr();
  task.anchor = c.anchors ? (*c.anchors)[i].const_data_ptr() : nullptr;
  task.numbers.momentum = 1;
  task.prox = prox;
  return task;
}

void run_tasks(const MetricCall& c, const std::vector<Segment>& segments, const std::vector<MetricTask>& tasks,
               void (*const kernels[kDtypes])(const MetricTask&, double*)) {
  cpu::run_metric(segments, tasks, kernels[dtype_index(c.params[0].scalar_type())], int64_t(c.params[0].element_size()),
                  int64_t(c.duals[0].element_size()));
}

// The gradients' factor, or 0 where nothing is to change.
double factor_on_cpu(const MetricCall& c, bool maximize) {
  if (c.found_inf && c.found_inf->item<double>() != 0) return 0;
  return (maximize ? -1.0 : 1.0) / (c.grad_scale ? c.grad_scale->item<double>() : 1.0);
}

}  // namespace

void ramda_step_(const Tensors& params, const Tensors& grads, const Tensors& duals, const Tensors& squares,
                 const Tensors& anchors, const Tensors& steps, const Tensors& alphas,
                 const std::vector<int64_t>& layouts, const std::string& prox_name,
                 const std::vector<double>& strengths, double lr, const std::optional<at::Tensor>& lr_tensor,
                 double momentum, double eps, bool maximize, const std::optional<at::Tensor>& grad_scale,
                 const std::optional<at::Tensor>& found_inf) {
  constexpr const char* op = "ramda_step_";
  const Prox prox = prox_from_name(op, prox_name);
  check_tensors(op, "params", params);
  const auto segments = make_segments(op, params, layouts);
  if (params.empty()) return;
  const MetricCall c{op,      params,  grads,     duals,     squares,   &anchors,   steps,
                     &alphas, "duals", "squares", strengths, lr_tensor, grad_scale, found_inf};
  const Tensors aligned = check_call(c);
  check_number(op, "momentum", momentum, momentum > 0 && momentum <= 1, "0 < momentum <= 1");
  check_number(op, "eps", eps, eps > 0, "a number > 0");
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(params[0])) {
    const cuda::MetricState state{params, aligned, duals, squares, &anchors, steps, &alphas};
    cuda::metric_step_(state, segments, prox, strengths,
                       {cuda::MetricRule::ramda, lr, momentum, eps, 0, 0, 0, maximize, nullptr, nullptr, nullptr},
                       lr_tensor, grad_scale, found_inf);
    return;
  }
#endif
  check_on_cpu(c);
  const double factor = factor_on_cpu(c, maximize);
  if (factor == 0) return;
  if (lr_tensor) lr = lr_tensor->item<double>();
  std::vector<MetricTask> tasks;
  for (size_t i = 0; i < params.size(); ++i) {
    auto& t = steps[i].mutable_data_ptr<float>()[0];
    auto& alpha = alphas[i].mutable_data_ptr<double>()[0];
    const RamdaScalars scalars = ramda_scalars(t, alpha, lr);
    tasks.push_back(task_of(c, aligned, i, prox));
    tasks[i].numbers.grad_factor = factor;
    tasks[i].numbers.rate = scalars.rate;
    tasks[i].numbers.eps = eps;
    tasks[i].numbers.momentum = momentum;
    tasks[i].numbers.tau = scalars.alpha * strengths[i];
    t += 1;
    alpha = scalars.alpha;
  }
  run_tasks(c, segments, tasks, cpu::kernel_set().metric.ramda);
}

void prox_adamw_step_(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs, const Tensors& exp_avg_sqs,
                      const Tensors& steps, const std::vector<int64_t>& layouts, const std::string& prox_name,
                      const std::vector<double>& strengths, double lr, const std::optional<at::Tensor>& lr_tensor,
                      double beta1, double beta2, double eps, double weight_decay, bool maximize,
                      const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf) {
  constexpr const char* op = "prox_adamw_step_";
  const Prox prox = prox_from_name(op, prox_name);
  check_tensors(op, "params", params);
  const auto segments = make_segments(op, params, layouts);
  if (params.empty()) return;
  const MetricCall c{op,      params,     grads,         exp_avgs,  exp_avg_sqs, nullptr,    steps,
                     nullptr, "exp_avgs", "exp_avg_sqs", strengths, lr_tensor,   grad_scale, found_inf};
  const Tensors aligned = check_call(c);
  check_number(op, "beta1", beta1, beta1 >= 0 && beta1 < 1, "0 <= beta1 < 1");
  check_number(op, "beta2", beta2, beta2 >= 0 && beta2 < 1, "0 <= beta2 < 1");
  check_number(op, "eps", eps, eps >= 0, "a number >= 0");
  check_number(op, "weight_decay", weight_decay, weight_decay >= 0, "a number >= 0");
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(params[0])) {
    const cuda::MetricState state{params, aligned, exp_avgs, exp_avg_sqs, nullptr, steps, nullptr};
    cuda::metric_step_(
        state, segments, prox, strengths,
        {cuda::MetricRule::adamw, lr, 1, eps, beta1, beta2, weight_decay, maximize, nullptr, nullptr, nullptr},
        lr_tensor, grad_scale, found_inf);
    return;
  }
#endif
  check_on_cpu(c);
  const double factor = factor_on_cpu(c, maximize);
  if (factor == 0) return;
  if (lr_tensor) lr = lr_tensor->item<double>();
  std::vector<MetricTask> tasks;
  for (size_t i = 0; i < params.size(); ++i) {
    auto& t = steps[i].mutable_data_ptr<float>()[0];
    const AdamwScalars scalars = adamw_scalars(t, lr, beta1, beta2, weight_decay);
    tasks.push_back(task_of(c, aligned, i, prox));
    MetricNumbers<double>& numbers = tasks[i].numbers;
    numbers.grad_factor = factor;
    numbers.eps = eps;
    numbers.mean_share = 1 - beta1;
    numbers.decay = beta2;
    numbers.square_share = 1 - beta2;
    numbers.rest = scalars.rest;
    numbers.size = scalars.size;
    numbers.inverse_root = scalars.inverse_root;
    numbers.tau = lr * strengths[i];
    t += 1;
  }
  run_tasks(c, segments, tasks, cpu::kernel_set().metric.adamw);
}

}  // namespace sparse_accel
