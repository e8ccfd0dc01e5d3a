#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace sparse_accel {

// The proximal step of a generalized linear model from z, exact to rounding.
//   z             [d] float or double
//   values        [b, d], or with crow [b + 1] and col [nnz] the values [nnz] of CSR rows
//   targets       [b] any real dtype
//   mode          "single": b = 1. "average": z + mean of the steps of single rows, each from z.
//                 "joint": argmin_x (1/b) sum_i loss_i(a_i.x) + |x - z|^2 / (2 lr)
//   delta         where the huber loss turns linear
// Returns x [d] and the number of Newton steps, [] int64: the most that a row took, or those of the joint problem.
std::tuple<at::Tensor, at::Tensor> glm_prox(const at::Tensor& z, const at::Tensor& values,
                                            const std::optional<at::Tensor>& crow, const std::optional<at::Tensor>& col,
                                            const at::Tensor& targets, double lr, const std::string& family,
                                            const std::string& mode, double delta);

}  // namespace sparse_accel
