#pragma once
// ATen side of the ops of generalized linear models on CUDA; arguments are checked, outputs allocated.
#include <ATen/core/Tensor.h>

#include "../ops/glm_common.h"

namespace sparse_accel::cuda {

// z, out [d]; iterations [] int64.
void glm_prox(const at::Tensor& z, const GlmData& data, double lr, Family family, double delta, const at::Tensor& out,
              const at::Tensor& iterations);

// average: null, or [d] on the device.
void glm_epoch(const at::Tensor& x, const at::Tensor& x_prev, const GlmData& data, const at::Tensor& order, double lr,
               double beta, Family family, double delta, double* average, int64_t average_start,
               const at::Tensor& iterations);

}  // namespace sparse_accel::cuda
