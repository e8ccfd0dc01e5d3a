#pragma once

#include <string>
#include <vector>

#include "common.h"

namespace sparse_accel {

// Score every group of every tensor.
//   tensors   N dense tensors, one dtype and device
//   layouts   4 N numbers: outer, groups, inner, blocks of each tensor's memory
//   outputs   N vectors [blocks * groups], float32 (float64 for float64 input); those of tensors without elements are
//             left as they are
//   kind      "l2" | "l2sq" | "l1" | "sum" | "amax" (largest magnitude)
//   coupled   the groups of one index in all tensors form one group, whose scores are in the first output; the others
//             are to work on, and on CUDA not looked at
void group_score(const Tensors& tensors, const std::vector<std::int64_t>& layouts, const Tensors& outputs,
                 const std::string& kind, bool coupled);

}  // namespace sparse_accel
