#pragma once
// ATen side of ramda_step_ and prox_adamw_step_ on CUDA: what ops/metric_step.cpp calls once arguments are checked.
#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "../ops/common.h"
#include "metric_step.h"

namespace sparse_accel::cuda {

// anchors and alphas are null under AdamW.
struct MetricState {
  const std::vector<at::Tensor>& params;
  const std::vector<at::Tensor>& grads;
  const std::vector<at::Tensor>& duals;
  const std::vector<at::Tensor>& squares;
  const std::vector<at::Tensor>* anchors;
  const std::vector<at::Tensor>& steps;
  const std::vector<at::Tensor>* alphas;
};

// Clocks as in rmda_step_: on the device nothing waits; on the CPU they are advanced by the host, which waits for
// lr_tensor and found_inf if those are on the device.
void metric_step_(const MetricState& state, const std::vector<Segment>& segments, Prox prox,
                  const std::vector<double>& strengths, MetricSettings settings,
                  const std::optional<at::Tensor>& lr_tensor, const std::optional<at::Tensor>& grad_scale,
                  const std::optional<at::Tensor>& found_inf);

}  // namespace sparse_accel::cuda
