#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace sparse_accel {

// Proximal operator of a group penalty, in place.
//   tensors      N dense tensors, one dtype and device
//   layouts      4 N numbers: outer, groups, inner, blocks
//   prox         "soft" | "hard", see math.h
//   thresholds   N numbers: step size times penalty strength
// Returns the penalty (without its strength) of each result, [N] float64; empty [0] if not with_value.
at::Tensor prox_(const std::vector<at::Tensor>& tensors, const std::vector<int64_t>& layouts, const std::string& prox,
                 const std::vector<double>& thresholds, bool with_value);

}  // namespace sparse_accel
