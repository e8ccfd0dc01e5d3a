// The kernels of masked_cg for AVX2.
#include "../masked_cg.h"
#include "masked_cg_kernels.h"
#if defined(__AVX2__) && defined(__FMA__)
#define CPU_CAPABILITY AVX2
#include "masked_cg_cpu.h"
namespace sparse_accel {
const CgKernels* const cg_kernels_avx2 = &CPU_CAPABILITY::cg_table;
}
#else
namespace sparse_accel {
const CgKernels* const cg_kernels_avx2 = nullptr;
}
#endif
