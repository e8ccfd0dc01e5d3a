// Block backward elimination for AVX2.
#include "gram_obs_kernels.h"
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define CPU_CAPABILITY AVX2
#define CPU_CAPABILITY_AVX2
#include "lanes.h"
#include "gram_obs_cpu.h"
namespace sparse_accel {
const GramObsKernels* const gram_obs_kernels_avx2 = &CPU_CAPABILITY::gram_obs_table;
}
#else
namespace sparse_accel {
const GramObsKernels* const gram_obs_kernels_avx2 = nullptr;
}
#endif
