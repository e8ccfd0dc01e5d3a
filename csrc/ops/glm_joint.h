#pragma once
#include <functional>

#include "glm_common.h"

namespace sparse_accel {

// The mean of the single-row steps from a point, [d] -> [d]: brings a joint problem's start into reach.
using GlmAverage = std::function<at::Tensor(const at::Tensor& z)>;

struct GlmJoint {
  at::Tensor x;  // [d], dtype of z
  int64_t iterations;
};

// argmin_x (1/b) sum_i loss_i(a_i.x) + |x - z|^2 / (2 lr), by Newton with a line search, on the tensors' device.
GlmJoint glm_joint(const at::Tensor& z, const GlmData& data, double lr, Family family, double delta,
                   const GlmAverage& average);

}  // namespace sparse_accel
