#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace sparse_accel {

// Score every group of every tensor.
//   tensors   N dense tensors, one dtype and device
//   layouts   4 N numbers: outer, groups, inner, blocks of each tensor's memory
//   kind      "l2" | "l2sq" | "l1" | "sum" | "amax" (largest magnitude)
//   coupled   the groups of one index in all tensors form one group
// Returns N vectors [blocks * groups], or one vector if coupled; float32 (float64 for float64 input).
std::vector<at::Tensor> group_score(const std::vector<at::Tensor>& tensors, const std::vector<int64_t>& layouts,
                                    const std::string& kind, bool coupled);

}  // namespace sparse_accel
