#pragma once
// ramda_step_ and prox_adamw_step_ on CUDA: what ops/metric_step.cpp calls once arguments are checked.

#include <optional>
#include <vector>

#include "../ops/common.h"
#include "metric_step.h"

namespace sparse_accel::cuda {

// anchors and alphas are null under AdamW.
struct MetricState {
  const Tensors& params;
  const Tensors& grads;
  const Tensors& duals;
  const Tensors& squares;
  const Tensors* anchors;
  const Tensors& steps;
  const Tensors* alphas;
};

// Clocks as in rmda_step_: on the device nothing waits; on the CPU they are advanced by the host, and lr and
// found_inf are numbers.
void metric_step_(const MetricState& state, const std::vector<Segment>& segments, Prox prox,
                  const std::vector<double>& strengths, MetricSettings settings, const std::optional<Tensor>& lr_tensor,
                  const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf);

}  // namespace sparse_accel::cuda
