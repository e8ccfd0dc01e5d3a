#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common.h"

namespace sparse_accel {

// Proximal operator of a group penalty, in place.
//   tensors      N dense tensors, one dtype and device
//   layouts      4 N numbers: outer, groups, inner, blocks
//   prox         "soft" | "hard", see math.h
//   thresholds   N numbers: step size times penalty strength
//   values       if given, [N] float64 zeros, to which the penalty (without its strength) of each result is added
void prox_(const Tensors& tensors, const std::vector<std::int64_t>& layouts, const std::string& prox,
           const std::vector<double>& thresholds, const std::optional<Tensor>& values);

}  // namespace sparse_accel
