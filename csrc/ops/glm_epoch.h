#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

namespace sparse_accel {

// A pass of implicit steps of single rows, one after another, in place:
//   z = x + beta (x - x_prev);  x_prev = x;  x = z + xi a_i,  xi = -lr slope(a_i.z + xi |a_i|^2)
//   x, x_prev      [d] contiguous, float or double
//   values, crow, col, targets, delta    as for glm_prox
//   order          [steps] int64, the row of each step
//   average        [d] double or nothing: receives the mean of the iterates after steps average_start, ..., steps - 1
// Returns the sum of the Newton steps, [] int64.
at::Tensor glm_epoch_(const at::Tensor& x, const at::Tensor& x_prev, const at::Tensor& values,
                      const std::optional<at::Tensor>& crow, const std::optional<at::Tensor>& col,
                      const at::Tensor& targets, const at::Tensor& order, double lr, double beta,
                      const std::string& family, double delta, const std::optional<at::Tensor>& average,
                      int64_t average_start);

}  // namespace sparse_accel
