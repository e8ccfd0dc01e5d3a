#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common.h"

namespace sparse_accel {

// One ProxSGD step (Yang et al., ICLR 2020) for N tensors, in place:
//   t += 1; M = (1 - rho) M + rho grad; W = prox_{lr * strength}(W - lr M)
// All tensors of one index have the same shape and the same dense strides.
//   params      W   float32 | float64 | bfloat16 | float16
//   grads           dtype of its param; not modified
//   buffers     M   float32 (float64 for float64 params)
//   steps       t   [] float32, on the CPU or the params' device
//   layouts     4 N numbers: outer, groups, inner, blocks
//   strengths   N penalty strengths; 0 leaves a tensor unregularized
//   rho         in (0, 1]
// The other numbers, and what is returned: see rmda_step_.
std::vector<std::int64_t> prox_sgd_step_(const Tensors& params, const Tensors& grads, const Tensors& buffers,
                                         const Tensors& steps, const std::vector<std::int64_t>& layouts,
                                         const std::string& prox, const std::vector<double>& strengths, double lr,
                                         const std::optional<Tensor>& lr_tensor, double rho, bool maximize,
                                         double grad_scale, const std::optional<Tensor>& grad_scale_tensor,
                                         const std::optional<Tensor>& found_inf);

}  // namespace sparse_accel
