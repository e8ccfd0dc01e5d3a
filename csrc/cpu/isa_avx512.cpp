// The CPU kernels for AVX512. Without these defines at::vec is scalar.
#include "kernels.h"
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns inside its own intrinsics
#endif
#define CPU_CAPABILITY AVX512
#define CPU_CAPABILITY_AVX512
#include "lanes.h"
#include "group_reduce.h"
#include "group_score_cpu.h"
#include "prox_cpu.h"
#include "rmda_step_cpu.h"
#include "table.h"
namespace sparse_accel {
const Kernels* const kernels_avx512 = &CPU_CAPABILITY::table;
}
#else
namespace sparse_accel {
const Kernels* const kernels_avx512 = nullptr;
}
#endif
