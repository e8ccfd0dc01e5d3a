// Block backward elimination for AVX512.
#include "gram_obs_kernels.h"
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns inside its own intrinsics
#endif
#define CPU_CAPABILITY AVX512
#define CPU_CAPABILITY_AVX512
#include "lanes.h"
#include "gram_obs_cpu.h"
namespace sparse_accel {
const GramObsKernels* const gram_obs_kernels_avx512 = &CPU_CAPABILITY::gram_obs_table;
}
#else
namespace sparse_accel {
const GramObsKernels* const gram_obs_kernels_avx512 = nullptr;
}
#endif
