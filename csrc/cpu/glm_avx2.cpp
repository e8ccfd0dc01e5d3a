// The kernels of generalized linear models for AVX2.
#include "glm_kernels.h"
#if defined(__AVX2__) && defined(__FMA__)
#define CPU_CAPABILITY AVX2
#include "glm_cpu.h"
namespace sparse_accel {
const GlmKernels* const glm_kernels_avx2 = &CPU_CAPABILITY::glm_table;
}
#else
namespace sparse_accel {
const GlmKernels* const glm_kernels_avx2 = nullptr;
}
#endif
