#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common.h"

namespace sparse_accel {

// Steps of adaptive methods for N tensors, in place; each ends in the proximal operator in the metric P that it has
// just brought up to date (see metric.h). All tensors of one index have the same shape and the same dense strides.
//   params      W   float32 | float64 | bfloat16 | float16
//   grads           dtype of its param; not modified
//   steps       t   [] float32, on the CPU or the params' device
//   layouts     4 N numbers: outer, groups, inner, blocks
//   strengths   N penalty strengths; 0 leaves a tensor unregularized
//   lr_tensor   on CUDA, if given, one float64 on the device that replaces lr: nothing waits for it
//   grad_scale, grad_scale_tensor   gradients are divided by it; on CUDA one float32 on the device, if given
//   found_inf   on CUDA, if given, one float32 on the device: nothing changes where it is not zero
// Returns the indices of gradients that lie in another memory order than their parameters. Where there are any, nothing
// was done: the caller copies them and calls again.

// RAMDA (Huang & Lee, NeurIPS 2024, arXiv 2403.14398):
//   t += 1; s = lr sqrt(t); alpha += s; V += s grad; U += s grad^2; P = U^(1/3) + eps
//   Wt = argmin <V, w> + 1/2 <w - W0, P (w - W0)> + alpha strength psi(w);  W = (1 - c) W + c Wt
//   duals, squares, anchors   V, U, W0   float32 (float64 for float64 params)
//   alphas                    [] float64, where steps are
std::vector<std::int64_t> ramda_step_(const Tensors& params, const Tensors& grads, const Tensors& duals,
                                      const Tensors& squares, const Tensors& anchors, const Tensors& steps,
                                      const Tensors& alphas, const std::vector<int64_t>& layouts,
                                      const std::string& prox, const std::vector<double>& strengths, double lr,
                                      const std::optional<Tensor>& lr_tensor, double momentum, double eps,
                                      bool maximize, double grad_scale, const std::optional<Tensor>& grad_scale_tensor,
                                      const std::optional<Tensor>& found_inf);

// AdamW (Loshchilov & Hutter, ICLR 2019) to a point x, then the penalty (ProxGen: Yun, Lozano & Yang, NeurIPS 2021):
//   m, v: running means of grad, grad^2;  P = sqrt(v / (1 - beta2^t)) + eps
//   x = (1 - lr weight_decay) W - lr / (1 - beta1^t) m / P;  W = argmin 1/2 <w - x, P (w - x)> + lr strength psi(w)
//   exp_avgs, exp_avg_sqs     m, v   float32 (float64 for float64 params)
std::vector<std::int64_t> prox_adamw_step_(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs,
                                           const Tensors& exp_avg_sqs, const Tensors& steps,
                                           const std::vector<int64_t>& layouts, const std::string& prox,
                                           const std::vector<double>& strengths, double lr,
                                           const std::optional<Tensor>& lr_tensor, double beta1, double beta2,
                                           double eps, double weight_decay, bool maximize, double grad_scale,
                                           const std::optional<Tensor>& grad_scale_tensor,
                                           const std::optional<Tensor>& found_inf);

}  // namespace sparse_accel
