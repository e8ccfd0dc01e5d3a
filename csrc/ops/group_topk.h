#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

namespace sparse_accel {

// The k largest scores over all vectors together, as boolean masks of the same shapes.
// Exactly k are true; ties go to the lowest index, vectors in the order given.
//   scores    N vectors [G_i], one dtype and device; NaN is refused
std::vector<at::Tensor> group_topk(const std::vector<at::Tensor>& scores, int64_t k);

}  // namespace sparse_accel
