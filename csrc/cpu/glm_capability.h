#pragma once
#include "glm_kernels.h"

namespace sparse_accel::cpu {

// The kernels for this machine (honours ATEN_CPU_CAPABILITY).
const GlmKernels& glm_kernels();

}  // namespace sparse_accel::cpu
