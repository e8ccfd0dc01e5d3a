// The kernels of generalized linear models for AVX512.
#include "glm_kernels.h"
#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define CPU_CAPABILITY AVX512
#include "glm_cpu.h"
namespace sparse_accel {
const GlmKernels* const glm_kernels_avx512 = &CPU_CAPABILITY::glm_table;
}
#else
namespace sparse_accel {
const GlmKernels* const glm_kernels_avx512 = nullptr;
}
#endif
