#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

namespace sparse_accel {

// Steps of conjugate gradients for min_X tr((X - W) H (X - W)^T) over X that are zero outside the mask: every row on
// its own, all rows in step, preconditioned by the diagonal of H. One product [R, C] x [C, C] a step and one before.
//   w      [R, C] float32 or float64
//   mask   [R, C] bool
//   h      [C, C] symmetric, positive semidefinite, of w's dtype
//   start  [R, C] where to start, its elements outside the mask are taken for zero; none: w
// Returns X [R, C]. Rows that are solved, or along whose direction H does not curve, stay as they are.
at::Tensor masked_cg(const at::Tensor& w, const at::Tensor& mask, const at::Tensor& h, int64_t iters,
                     const std::optional<at::Tensor>& start);

}  // namespace sparse_accel
