#include "glm_capability.h"

#include "choose_kernels.h"

namespace sparse_accel::cpu {

const GlmKernels& glm_kernels() {
  static const GlmKernels& chosen = choose_kernels(glm_kernels_default, glm_kernels_avx2, glm_kernels_avx512);
  return chosen;
}

}  // namespace sparse_accel::cpu
