#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace sparse_accel {

// Keeps the elements of x with the largest scores and sets the others to zero, in place; returns the mask, bool, as x.
// Exactly as many are kept as asked for; ties go to the lowest index. NaN is refused, with nothing changed.
//   x       [...] float32, float64, bfloat16 or float16
//   scores  as x, of any of these dtypes (by "group" also [blocks * groups]); none: |x|, times scale
//   k       {k}, or {n, m}: n of every m neighbours along the last dimension, the last block of a row may be shorter
//   by      what k is counted over: "tensor"; "row", x[i]; "group", whole groups of a layout by the norm of their
//   scores;
//           "within", each group of a layout
//   layout  outer, groups, inner, blocks of the memory of x; by "group" and "within" only, else empty
//   scale   [C] of the last dimension
at::Tensor topk_threshold_(const at::Tensor& x, const std::optional<at::Tensor>& scores, const std::vector<int64_t>& k,
                           const std::string& by, const std::vector<int64_t>& layout,
                           const std::optional<at::Tensor>& scale);

}  // namespace sparse_accel
