#include <c10/util/Exception.h>

#include "choose_kernels.h"
#include "schedule.h"

namespace sparse_accel::cpu {

const Kernels& kernels() {
  static const Kernels& chosen = choose_kernels(kernels_default, kernels_avx2, kernels_avx512);
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
