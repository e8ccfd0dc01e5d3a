#include "metric_step.h"

#include "../cpu/isa/kernel_set.h"
#include "../cpu/metric_step/metric_step_run.h"
#include "common.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/metric_step_ops_cuda.h"
#endif

namespace sparse_accel {
namespace {

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
  const std::optional<Tensor>& lr_tensor;
  const std::optional<Tensor>& grad_scale_tensor;
  const std::optional<Tensor>& found_inf;
};

void check_strides(const MetricCall& c, const char* name, const Tensors& state, size_t i) {
  CHECK_VALUE(same_memory_order(state[i], c.params[i]), c.op, ": ", name, "[", i,
              "]: expected the strides of the parameter, ", c.params[i].strides(), ", got ", state[i].strides());
}

// All but the numbers that only one of the ops has.
void check_call(const MetricCall& c) {
  const auto dtype = c.params[0].scalar_type();
  check_state(c.op, "grads", c.grads, c.params, dtype);
  check_state(c.op, c.dual_name, c.duals, c.params, compute_type(dtype));
  check_state(c.op, c.square_name, c.squares, c.params, compute_type(dtype));
  if (c.anchors) check_state(c.op, "anchors", *c.anchors, c.params, compute_type(dtype));
  const Tensor& clock = c.steps.empty() ? c.params[0] : c.steps[0];
  check_clocks(c.op, "steps", c.steps, c.params, clock, kFloat);
  if (c.alphas) check_clocks(c.op, "alphas", *c.alphas, c.params, clock, kDouble);
  check_number(c.op, "lr", c.lr_tensor, c.params[0], kDouble);
  check_number(c.op, "grad_scale", c.grad_scale_tensor, c.params[0], kFloat);
  check_number(c.op, "found_inf", c.found_inf, c.params[0], kFloat);
  CHECK_VALUE(c.strengths.size() == c.params.size(), c.op, ": strengths: expected one for each of ", c.params.size(),
              " parameters, got ", c.strengths.size());
  for (size_t i = 0; i < c.params.size(); ++i) {
    CHECK_VALUE(c.strengths[i] >= 0, c.op, ": strengths[", i, "]: expected a number >= 0, got ", c.strengths[i]);
    check_strides(c, c.dual_name, c.duals, i);
    check_strides(c, c.square_name, c.squares, i);
    if (c.anchors) check_strides(c, "anchors", *c.anchors, i);
  }
  check_device(c.op, "params", c.params[0]);
}

void check_range(const char* op, const char* name, double value, bool fits, const char* expected) {
  CHECK_VALUE(fits, op, ": ", name, ": expected ", expected, ", got ", value);
}

void check_on_cpu(const MetricCall& c) {
  CHECK_VALUE(!c.lr_tensor && !c.grad_scale_tensor && !c.found_inf, c.op, ": expected numbers on the CPU, got tensors");
}

MetricTask task_of(const MetricCall& c, size_t i, Prox prox) {
  MetricTask task{};
  task.param = c.params[i].mutable_data_ptr();
  task.grad = c.grads[i].const_data_ptr();
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

}  // namespace

std::vector<std::int64_t> ramda_step_(const Tensors& params, const Tensors& grads, const Tensors& duals,
                                      const Tensors& squares, const Tensors& anchors, const Tensors& steps,
                                      const Tensors& alphas, const std::vector<int64_t>& layouts,
                                      const std::string& prox_name, const std::vector<double>& strengths, double lr,
                                      const std::optional<Tensor>& lr_tensor, double momentum, double eps,
                                      bool maximize, double grad_scale, const std::optional<Tensor>& grad_scale_tensor,
                                      const std::optional<Tensor>& found_inf) {
  constexpr const char* op = "ramda_step_";
  const Prox prox = prox_from_name(op, prox_name);
  check_tensors(op, "params", params);
  const auto segments = make_segments(op, params, layouts);
  if (params.empty()) return {};
  const MetricCall c{op,      params,  grads,     duals,     squares,   &anchors,          steps,
                     &alphas, "duals", "squares", strengths, lr_tensor, grad_scale_tensor, found_inf};
  check_call(c);
  check_range(op, "momentum", momentum, momentum > 0 && momentum <= 1, "0 < momentum <= 1");
  check_range(op, "eps", eps, eps > 0, "a number > 0");
  if (const auto others = in_another_order(grads, params); !others.empty()) return others;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(params[0])) {
    check_range(op, "grad_scale", grad_scale, grad_scale == 1, "a tensor on CUDA");
    const cuda::MetricState state{params, grads, duals, squares, &anchors, steps, &alphas};
    cuda::metric_step_(state, segments, prox, strengths,
                       {cuda::MetricRule::ramda, lr, momentum, eps, 0, 0, 0, maximize, nullptr, nullptr, nullptr},
                       lr_tensor, grad_scale_tensor, found_inf);
    return {};
  }
#endif
  check_on_cpu(c);
  const double factor = (maximize ? -1.0 : 1.0) / grad_scale;
  std::vector<MetricTask> tasks;
  for (size_t i = 0; i < params.size(); ++i) {
    auto& t = steps[i].mutable_data_ptr<float>()[0];
    auto& alpha = alphas[i].mutable_data_ptr<double>()[0];
    const RamdaScalars scalars = ramda_scalars(t, alpha, lr);
    tasks.push_back(task_of(c, i, prox));
    tasks[i].numbers.grad_factor = factor;
    tasks[i].numbers.rate = scalars.rate;
    tasks[i].numbers.eps = eps;
    tasks[i].numbers.momentum = momentum;
    tasks[i].numbers.tau = scalars.alpha * strengths[i];
    t += 1;
    alpha = scalars.alpha;
  }
  run_tasks(c, segments, tasks, cpu::kernel_set().metric.ramda);
  return {};
}

std::vector<std::int64_t> prox_adamw_step_(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs,
                                           const Tensors& exp_avg_sqs, const Tensors& steps,
                                           const std::vector<int64_t>& layouts, const std::string& prox_name,
                                           const std::vector<double>& strengths, double lr,
                                           const std::optional<Tensor>& lr_tensor, double beta1, double beta2,
                                           double eps, double weight_decay, bool maximize, double grad_scale,
                                           const std::optional<Tensor>& grad_scale_tensor,
                                           const std::optional<Tensor>& found_inf) {
  constexpr const char* op = "prox_adamw_step_";
  const Prox prox = prox_from_name(op, prox_name);
  check_tensors(op, "params", params);
  const auto segments = make_segments(op, params, layouts);
  if (params.empty()) return {};
  const MetricCall c{op,      params,     grads,         exp_avgs,  exp_avg_sqs, nullptr,           steps,
                     nullptr, "exp_avgs", "exp_avg_sqs", strengths, lr_tensor,   grad_scale_tensor, found_inf};
  check_call(c);
  check_range(op, "beta1", beta1, beta1 >= 0 && beta1 < 1, "0 <= beta1 < 1");
  check_range(op, "beta2", beta2, beta2 >= 0 && beta2 < 1, "0 <= beta2 < 1");
  check_range(op, "eps", eps, eps >= 0, "a number >= 0");
  check_range(op, "weight_decay", weight_decay, weight_decay >= 0, "a number >= 0");
  if (const auto others = in_another_order(grads, params); !others.empty()) return others;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(params[0])) {
    check_range(op, "grad_scale", grad_scale, grad_scale == 1, "a tensor on CUDA");
    const cuda::MetricState state{params, grads, exp_avgs, exp_avg_sqs, nullptr, steps, nullptr};
    cuda::metric_step_(
        state, segments, prox, strengths,
        {cuda::MetricRule::adamw, lr, 1, eps, beta1, beta2, weight_decay, maximize, nullptr, nullptr, nullptr},
        lr_tensor, grad_scale_tensor, found_inf);
    return {};
  }
#endif
  check_on_cpu(c);
  const double factor = (maximize ? -1.0 : 1.0) / grad_scale;
  std::vector<MetricTask> tasks;
  for (size_t i = 0; i < params.size(); ++i) {
    auto& t = steps[i].mutable_data_ptr<float>()[0];
    const AdamwScalars scalars = adamw_scalars(t, lr, beta1, beta2, weight_decay);
    tasks.push_back(task_of(c, i, prox));
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
  return {};
}

}  // namespace sparse_accel
