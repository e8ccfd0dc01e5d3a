// ATen side of ramda_step_ and prox_adamw_step_.

#include "../metric.h"
#include "guard.h"
#include "metric_step_ops_cuda.h"

namespace sparse_accel::cuda {

void metric_step_(const MetricState& state, const std::vector<Segment>& segments, Prox prox,
                  const std::vector<double>& strengths, MetricSettings settings,
                  const std::optional<at::Tensor>& lr_tensor, const std::optional<at::Tensor>& grad_scale,
                  const std::optional<at::Tensor>& found_inf) {
  const auto& params = state.params;
  if (params.empty()) return;
  Launch launch(params[0]);
  const at::Device device = params[0].device();
  const bool clocks_on_device = state.steps[0].device() == device;
  at::Tensor rate, inf, scale;
  if (lr_tensor && (!clocks_on_device || lr_tensor->device() != device)) {
    settings.lr = lr_tensor->item<double>();
  } else if (lr_tensor) {
    rate = lr_tensor->to(at::kDouble);
    settings.lr_tensor = rate.const_data_ptr<double>();
  }
  if (found_inf && !clocks_on_device) {
    // Clocks on the CPU cannot wait for a number on the device: here, and for lr above, the host does.
    if (found_inf->item<double>() != 0) return;
  } else if (found_inf) {
    inf = found_inf->to(device, at::kFloat);
    settings.found_inf = inf.const_data_ptr<float>();
  }
  if (grad_scale) {
    scale = grad_scale->to(device, at::kFloat);
    settings.grad_scale = scale.const_data_ptr<float>();
  }

  std::vector<MetricClock> clocks;
  for (size_t i = 0; i < params.size(); ++i) {
    float* const step = state.steps[i].mutable_data_ptr<float>();
    double* const alpha = state.alphas ? (*state.alphas)[i].mutable_data_ptr<double>() : nullptr;
    clocks.push_back(clocks_on_device ? MetricClock{step, alpha, 0, 0, strengths[i]}
                                      : MetricClock{nullptr, nullptr, *step, alpha ? *alpha : 0, strengths[i]});
  }
  std::vector<MetricSegment> table;
  for (const Segment& segment : segments) {
    const auto i = size_t(segment.tensor);
    const int64_t at = segment.element;
    table.push_back({element(params[i], at), const_element(state.grads[i], at), element(state.duals[i], at),
                     element(state.squares[i], at), state.anchors ? const_element((*state.anchors)[i], at) : nullptr,
                     segment.layout, int(segment.tensor)});
  }
  launch.check(metric_step(dtype_of(params[0]), table, clocks, settings, prox, launch.scratch(), launch.stream()));
  for (size_t i = 0; i < clocks.size() && !clocks_on_device; ++i) {
    *state.steps[i].mutable_data_ptr<float>() = float(clocks[i].step_value + 1);
    if (!state.alphas) continue;
    const RamdaScalars scalars = ramda_scalars(clocks[i].step_value, clocks[i].alpha_value, settings.lr);
    *(*state.alphas)[i].mutable_data_ptr<double>() = scalars.alpha;
  }
}

}  // namespace sparse_accel::cuda
