// The kernels of masked_cg for AVX512.
#include "../masked_cg.h"
#include "masked_cg_kernels.h"
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define CPU_CAPABILITY AVX512
#include "masked_cg_cpu.h"
namespace sparse_accel {
const CgKernels* const cg_kernels_avx512 = &CPU_CAPABILITY::cg_table;
}
#else
namespace sparse_accel {
const CgKernels* const cg_kernels_avx512 = nullptr;
}
#endif
