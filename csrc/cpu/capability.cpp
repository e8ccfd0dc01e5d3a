#include <ATen/Version.h>
#include <c10/util/Exception.h>

#include <string>

#include "schedule.h"

namespace sparse_accel::cpu {

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512" && kernels_avx512) return *kernels_avx512;
    if ((capability == "AVX512" || capability == "AVX2") && kernels_avx2) return *kernels_avx2;
    return *kernels_default;
  }();
  return chosen;
}

int dtype_index(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return 0;
    case at::kDouble:
      return 1;
    case at::kBFloat16:
      return 2;
    case at::kHalf:
      return 3;
    default:
      TORCH_CHECK_TYPE(false, "expected float32, float64, bfloat16 or float16, got ", dtype);
  }
}

}  // namespace sparse_accel::cpu
