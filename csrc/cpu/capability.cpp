// Which of the builds of the kernels runs.
#include <string>

#include "../torch_runtime.h"
#include "isa/kernel_set.h"

namespace sparse_accel::cpu {
namespace {

// The kernels for AVX2 and AVX512 move bits with it, too.
bool has_bmi2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("bmi2");
#else
  return false;
#endif
}

template <class Table>
const Table& choose(const Table* plain, const Table* avx2, const Table* avx512) {
  const std::string capability = has_bmi2() ? cpu_capability() : "DEFAULT";
  if (capability == "AVX512" && avx512) return *avx512;
  if ((capability == "AVX512" || capability == "AVX2") && avx2) return *avx2;
  return *plain;
}

}  // namespace

const KernelSet& kernel_set() {
  static const KernelSet& chosen = choose(kernel_set_default, kernel_set_avx2, kernel_set_avx512);
  return chosen;
}

const TopkKernels& topk_kernels() {
  static const TopkKernels& chosen = choose(topk_kernels_default, topk_kernels_avx2, topk_kernels_avx512);
  return chosen;
}

const SparseKernels& sparse_kernels() {
  static const SparseKernels& chosen = choose(sparse_kernels_default, sparse_kernels_avx2, sparse_kernels_avx512);
  return chosen;
}

}  // namespace sparse_accel::cpu
