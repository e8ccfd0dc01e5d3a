#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

namespace sparse_accel::cpu {

// scores contiguous; masks: bool, as scores; 0 <= k <= total. Raises ValueError on NaN.
void group_topk(const std::vector<at::Tensor>& scores, const std::vector<at::Tensor>& masks, int64_t k);

}  // namespace sparse_accel::cpu
