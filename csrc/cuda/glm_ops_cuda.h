#pragma once
// The ops of generalized linear models on CUDA; arguments are checked, outputs allocated.
#include "../cpu/glm/glm_kernels.h"
#include "../ops/common.h"
#include "glm.h"

namespace sparse_accel::cuda {

// z, out [columns]; iterations [] int64.
void glm_prox(const Tensor& z, const GlmRows& rows, double lr, Family family, double delta, const Tensor& out,
              const Tensor& iterations);

void glm_epoch(const Tensor& x, const GlmRows& rows, const GlmPass& pass, double lr, Family family, double delta,
               const Tensor& iterations);

}  // namespace sparse_accel::cuda
