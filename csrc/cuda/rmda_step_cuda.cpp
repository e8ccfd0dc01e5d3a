// Between tensors and launchers: rmda_step_.

#include "guard.h"
#include "ops_cuda.h"
#include "rmda_step.h"

namespace sparse_accel::cuda {

void rmda_step_(const Tensors& params, const Tensors& grads, const Tensors& points, const Tensors& anchors,
                const Tensors& steps, const Tensors& alphas, const std::vector<Segment>& segments, Prox prox,
                const std::vector<double>& strengths, double lr, const std::optional<Tensor>& lr_tensor,
                double momentum, bool maximize, const std::optional<Tensor>& grad_scale,
                const std::optional<Tensor>& found_inf) {
  if (params.empty()) return;
  Launch launch(params[0]);
  const bool clocks_on_device = steps[0].device() == params[0].device();
  CHECK_VALUE(clocks_on_device || (!lr_tensor && !found_inf),
              "rmda_step_: lr, found_inf: expected numbers with clocks on the CPU, got tensors");
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
    if (!table.empty() && table.back().tensor == segment.tensor) {  // its layout's next block
      ++table.back().copies;
      continue;
    }
    const int64_t at = segment.element;
    table.push_back({element(params[i], at), const_element(grads[i], at), element(points[i], at),
                     const_element(anchors[i], at), segment.layout, int(segment.tensor)});
  }
  const RmdaSettings settings{prox,
                              lr,
                              lr_tensor ? lr_tensor->const_data_ptr<double>() : nullptr,
                              momentum,
                              maximize,
                              grad_scale ? grad_scale->const_data_ptr<float>() : nullptr,
                              found_inf ? found_inf->const_data_ptr<float>() : nullptr};
  launch.check(rmda_step(dtype_of(params[0]), table, clocks, settings, launch.scratch(), launch.stream()));
  for (size_t i = 0; i < clocks.size() && !clocks_on_device; ++i) {
    const RmdaScalars scalars = rmda_scalars(clocks[i].step_value, clocks[i].alpha_value, lr, strengths[i]);
    *steps[i].mutable_data_ptr<float>() = float(clocks[i].step_value + 1);
    *alphas[i].mutable_data_ptr<double>() = scalars.alpha;
  }
}

}  // namespace sparse_accel::cuda
