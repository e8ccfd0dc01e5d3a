// The kernels of topk_threshold_ for AVX2. Without these defines at::vec is scalar.
#include "topk_threshold_kernels.h"
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define CPU_CAPABILITY AVX2
#define CPU_CAPABILITY_AVX2
#include "topk_threshold_set.h"
namespace sparse_accel {
const TopkKernels* const topk_kernels_avx2 = &CPU_CAPABILITY::topk_table;
}
#else
namespace sparse_accel {
const TopkKernels* const topk_kernels_avx2 = nullptr;
}
#endif
