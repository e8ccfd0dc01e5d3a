// Between tensors and launchers: ramda_step_ and prox_adamw_step_.

#include "../metric.h"
#include "guard.h"
#include "metric_step_ops_cuda.h"

namespace sparse_accel::cuda {

void metric_step_(const MetricState& state, const std::vector<Segment>& segments, Prox prox,
                  const std::vector<double>& strengths, MetricSettings settings, const std::optional<Tensor>& lr_tensor,
                  const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf) {
  const auto& params = state.params;
  if (params.empty()) return;
  Launch launch(params[0]);
  const bool clocks_on_device = state.steps[0].device() == params[0].device();
  CHECK_VALUE(clocks_on_device || (!lr_tensor && !found_inf),
              "lr, found_inf: expected numbers with clocks on the CPU, got tensors");
  if (lr_tensor) settings.lr_tensor = lr_tensor->const_data_ptr<double>();
  if (found_inf) settings.found_inf = found_inf->const_data_ptr<float>();
  if (grad_scale) settings.grad_scale = grad_scale->const_data_ptr<float>();

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
    if (!table.empty() && table.back().tensor == segment.tensor) {  // its layout's next block
      ++table.back().copies;
      continue;
    }
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
