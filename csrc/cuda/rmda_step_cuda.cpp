// ATen side of rmda_step_.

#include "guard.h"
#include "ops_cuda.h"
#include "rmda_step.h"

namespace sparse_accel::cuda {
void rmda_step_(const std::vector<at::Tensor>& params, const std::vector<at::Tensor>& grads,
                const std::vector<at::Tensor>& points, const std::vector<at::Tensor>& anchors,
                const std::vector<at::Tensor>& steps, const std::vector<at::Tensor>& alphas,
                const std::vector<Segment>& segments, Prox prox, const std::vector<double>& strengths, double lr,
                const std::optional<at::Tensor>& lr_tensor, double momentum, bool maximize,
                const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf) {
  if (params.empty()) return;
  Launch launch(params[0]);
  const at::Device device = params[0].device();
  const bool clocks_on_device = steps[0].device() == device;
  at::Tensor rate, inf, scale;
  if (lr_tensor && (!clocks_on_device || lr_tensor->device() != device)) {
    lr = lr_tensor->item<double>();
  } else if (lr_tensor) {
    rate = lr_tensor->to(at::kDouble);
  }
  if (found_inf && !clocks_on_device) {
    // Clocks on the CPU cannot wait for a number on the device: here, and for lr above, the host does.
    if (found_inf->item<double>() != 0) return;
  } else if (found_inf) {
    inf = found_inf->to(device, at::kFloat);
  }
  if (grad_scale) scale = grad_scale->to(device, at::kFloat);

  std::vector<RmdaClock> clocks;
  for (size_t i = 0; i < params.size(); ++i) {
    float* const step = steps[i].mutable_data_ptr<float>();
    double* const alpha = alphas[i].mutable_data_ptr<double>();
    clocks.push_back(clocks_on_device ? RmdaClock{step, alpha, 0, 0, strengths[i]}
                                      : RmdaClock{nullptr, nullptr, *step, *alpha, strengths[i]});
  }
  std::vector<RmdaSegment> table;
  for (const Segment& segment : segments) {
    const auto i = size_t(segment.tensor);
    const int64_t at = segment.element;
    table.push_back({element(params[i], at), const_element(grads[i], at), element(points[i], at),
                     const_element(anchors[i], at), segment.layout, int(segment.tensor)});
  }
  const RmdaSettings settings{prox,
                              lr,
                              rate.defined() ? rate.const_data_ptr<double>() : nullptr,
                              momentum,
                              maximize,
                              scale.defined() ? scale.const_data_ptr<float>() : nullptr,
                              inf.defined() ? inf.const_data_ptr<float>() : nullptr};
  launch.check(rmda_step(dtype_of(params[0]), table, clocks, settings, launch.scratch(), launch.stream()));
  for (size_t i = 0; i < clocks.size() && !clocks_on_device; ++i) {
    const RmdaScalars scalars = rmda_scalars(clocks[i].step_value, clocks[i].alpha_value, lr, strengths[i]);
    *steps[i].mutable_data_ptr<float>() = float(clocks[i].step_value + 1);
    *alphas[i].mutable_data_ptr<double>() = scalars.alpha;
  }
}

}  // namespace sparse_accel::cuda
