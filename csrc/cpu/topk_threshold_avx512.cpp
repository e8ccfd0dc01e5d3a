// The kernels of topk_threshold_ for AVX512. Without these defines at::vec is scalar.
#include "topk_threshold_kernels.h"
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns inside its own intrinsics
#endif
#define CPU_CAPABILITY AVX512
#define CPU_CAPABILITY_AVX512
#include "topk_threshold_set.h"
namespace sparse_accel {
const TopkKernels* const topk_kernels_avx512 = &CPU_CAPABILITY::topk_table;
}
#else
namespace sparse_accel {
const TopkKernels* const topk_kernels_avx512 = nullptr;
}
#endif
