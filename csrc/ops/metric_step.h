#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace sparse_accel {

// Steps of adaptive methods for N tensors, in place; each ends in the proximal operator in the metric P that it has
// just brought up to date (see metric.h). All tensors of one index have the same shape and the same dense strides.
//   params      W   float32 | float64 | bfloat16 | float16
//   grads           dtype of its param; not modified
//   steps       t   [] float32, on the CPU or the params' device
//   layouts     4 N numbers: outer, groups, inner, blocks
//   strengths   N penalty strengths; 0 leaves a tensor unregularized
//   lr_tensor   if given, one element that replaces lr (read on the device: no synchronization)
//   grad_scale, found_inf   AMP: [] float32 on the device; gradients are divided by grad_scale,
//                           and nothing changes where found_inf is not zero

// RAMDA (Huang & Lee, NeurIPS 2024, arXiv 2403.14398):
//   t += 1; s = lr sqrt(t); alpha += s; V += s grad; U += s grad^2; P = U^(1/3) + eps
//   Wt = argmin <V, w> + 1/2 <w - W0, P (w - W0)> + alpha strength psi(w);  W = (1 - c) W + c Wt
//   duals, squares, anchors   V, U, W0   float32 (float64 for float64 params)
//   alphas                    [] float64, where steps are
void ramda_step_(const std::vector<at::Tensor>& params, const std::vector<at::Tensor>& grads,
                 const std::vector<at::Tensor>& duals, const std::vector<at::Tensor>& squares,
                 const std::vector<at::Tensor>& anchors, const std::vector<at::Tensor>& steps,
                 const std::vector<at::Tensor>& alphas, const std::vector<int64_t>& layouts, const std::string& prox,
                 const std::vector<double>& strengths, double lr, const std::optional<at::Tensor>& lr_tensor,
                 double momentum, double eps, bool maximize, const std::optional<at::Tensor>& grad_scale,
                 const std::optional<at::Tensor>& found_inf);

// AdamW (Loshchilov & Hutter, ICLR 2019) to a point x, then the penalty (ProxGen: Yun, Lozano & Yang, NeurIPS 2021):
//   m, v: running means of grad, grad^2;  P = sqrt(v / (1 - beta2^t)) + eps
//   x = (1 - lr weight_decay) W - lr / (1 - beta1^t) m / P;  W = argmin 1/2 <w - x, P (w - x)> + lr strength psi(w)
//   exp_avgs, exp_avg_sqs     m, v   float32 (float64 for float64 params)
void prox_adamw_step_(const std::vector<at::Tensor>& params, const std::vector<at::Tensor>& grads,
                      const std::vector<at::Tensor>& exp_avgs, const std::vector<at::Tensor>& exp_avg_sqs,
                      const std::vector<at::Tensor>& steps, const std::vector<int64_t>& layouts,
                      const std::string& prox, const std::vector<double>& strengths, double lr,
                      const std::optional<at::Tensor>& lr_tensor, double beta1, double beta2, double eps,
                      double weight_decay, bool maximize, const std::optional<at::Tensor>& grad_scale,
                      const std::optional<at::Tensor>& found_inf);

}  // namespace sparse_accel
