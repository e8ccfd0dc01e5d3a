// Between tensors and launchers: prox_sgd_step_.

#include "guard.h"
#include "prox_sgd_step.h"
#include "prox_sgd_step_ops_cuda.h"

namespace sparse_accel::cuda {

void prox_sgd_step_(const Tensors& params, const Tensors& grads, const Tensors& buffers, const Tensors& steps,
                    const std::vector<Segment>& segments, Prox prox, const std::vector<double>& strengths, double lr,
                    const std::optional<Tensor>& lr_tensor, double rho, bool maximize,
                    const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf) {
  if (params.empty()) return;
  Launch launch(params[0]);
  const bool clocks_on_device = steps[0].device() == params[0].device();
  CHECK_VALUE(clocks_on_device || (!lr_tensor && !found_inf),
              "prox_sgd_step_: lr, found_inf: expected numbers with clocks on the CPU, got tensors");
  std::vector<SgdClock> clocks;
  for (size_t i = 0; i < params.size(); ++i) {
    clocks.push_back({clocks_on_device ? steps[i].mutable_data_ptr<float>() : nullptr, strengths[i]});
  }
  std::vector<SgdSegment> table;
  for (const Segment& segment : segments) {
    const auto i = size_t(segment.tensor);
    if (!table.empty() && table.back().tensor == segment.tensor) {  // its layout's next block
      ++table.back().copies;
      continue;
    }
    const int64_t at = segment.element;
    table.push_back({element(params[i], at), const_element(grads[i], at), element(buffers[i], at), segment.layout,
                     int(segment.tensor)});
  }
  const SgdSettings settings{prox,
                             lr,
                             lr_tensor ? lr_tensor->const_data_ptr<double>() : nullptr,
                             rho,
                             maximize,
                             grad_scale ? grad_scale->const_data_ptr<float>() : nullptr,
                             found_inf ? found_inf->const_data_ptr<float>() : nullptr};
  launch.check(prox_sgd_step(dtype_of(params[0]), table, clocks, settings, launch.scratch(), launch.stream()));
  for (size_t i = 0; i < steps.size() && !clocks_on_device; ++i) *steps[i].mutable_data_ptr<float>() += 1;
}

}  // namespace sparse_accel::cuda
