#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common.h"

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
//   lr_tensor   on CUDA, if given, one float64 on the device that replaces lr: nothing waits for it
//   grad_scale, grad_scale_tensor   gradients are divided by it; on CUDA one float32 on the device, if given
//   found_inf   on CUDA, if given, one float32 on the device: nothing changes where it is not zero
// Returns the indices of gradients that lie in another memory order than their parameters. Where there are any, nothing
// was done: the caller copies them and calls again.
std::vector<std::int64_t> rmda_step_(const Tensors& params, const Tensors& grads, const Tensors& points,
                                     const Tensors& anchors, const Tensors& steps, const Tensors& alphas,
                                     const std::vector<int64_t>& layouts, const std::string& prox,
                                     const std::vector<double>& strengths, double lr,
                                     const std::optional<Tensor>& lr_tensor, double momentum, bool maximize,
                                     double grad_scale, const std::optional<Tensor>& grad_scale_tensor,
                                     const std::optional<Tensor>& found_inf);

}  // namespace sparse_accel
