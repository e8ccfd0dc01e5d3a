#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace sparse_accel {

// Block backward elimination in Gram matrices: see sparse_accel/gram_obs.py.
//   inverse    [problems, n, n] float64, symmetric positive definite: Q
//   weight     [problems, d, n] float64, the minimizer on all columns: W
//   block      columns of a unit, which are neighbours; divides n
//   steps      units to remove from each problem
//   sets       [n / block] int64, numbers from 0, sets of one size; or nothing
// Returns the units in order of removal, [problems, steps] int64, and the cost of each, [problems, steps] float64.
std::tuple<at::Tensor, at::Tensor> gram_obs(const at::Tensor& inverse, const at::Tensor& weight, int64_t block,
                                            int64_t steps, const std::optional<at::Tensor>& sets);

}  // namespace sparse_accel
