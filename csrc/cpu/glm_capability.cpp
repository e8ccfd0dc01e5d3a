#include "glm_capability.h"

#include <ATen/Version.h>

#include <string>

namespace sparse_accel::cpu {

const GlmKernels& glm_kernels() {
  static const GlmKernels& chosen = []() -> const GlmKernels& {
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512" && glm_kernels_avx512) return *glm_kernels_avx512;
    if ((capability == "AVX512" || capability == "AVX2") && glm_kernels_avx2) return *glm_kernels_avx2;
    return *glm_kernels_default;
  }();
  return chosen;
}

}  // namespace sparse_accel::cpu
