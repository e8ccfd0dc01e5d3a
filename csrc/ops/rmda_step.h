#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace sparse_accel {

// One RMDA step (Huang & Lee, ICLR 2022, Algorithm 1) for N tensors, in place:
//   t += 1; beta = sqrt(t); s = lr * beta; alpha += s; V += s * grad; X = W0 - V / beta
//   Wt = prox_{alpha / beta * strength}(X);  W = (1 - c) W + c Wt
// The state is X, not V: see rmda_scalars in math.h.
// All tensors of one index have the same shape and the same dense strides.
//   params      W   float32 | float64 | bfloat16 | float16
//   grads           dtype of its param; not modified
//   points      X   float32 (float64 for float64 params)
//   anchors     W0  as X
//   steps       t   [] float32, on the CPU or the params' device
//   alphas          [] float64, where steps are
//   layouts     4 N numbers: outer, groups, inner, blocks
//   strengths   N penalty strengths; 0 leaves a tensor unregularized
//   lr_tensor   if given, one element that replaces lr (read on the device: no synchronization)
//   grad_scale, found_inf   AMP: [] float32 on the device; gradients are divided by grad_scale,
//                           and nothing changes where found_inf is not zero
void rmda_step_(const std::vector<at::Tensor>& params, const std::vector<at::Tensor>& grads,
                const std::vector<at::Tensor>& points, const std::vector<at::Tensor>& anchors,
                const std::vector<at::Tensor>& steps, const std::vector<at::Tensor>& alphas,
                const std::vector<int64_t>& layouts, const std::string& prox, const std::vector<double>& strengths,
                double lr, const std::optional<at::Tensor>& lr_tensor, double momentum, bool maximize,
                const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf);

}  // namespace sparse_accel
