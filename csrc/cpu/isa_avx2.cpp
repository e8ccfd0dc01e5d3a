// The CPU kernels for AVX2. Without these defines at::vec is scalar.
#include "kernels.h"
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define CPU_CAPABILITY AVX2
#define CPU_CAPABILITY_AVX2
#include "lanes.h"
#include "group_reduce.h"
#include "group_score_cpu.h"
#include "prox_cpu.h"
#include "rmda_step_cpu.h"
#include "table.h"
namespace sparse_accel {
const Kernels* const kernels_avx2 = &CPU_CAPABILITY::table;
}
#else
namespace sparse_accel {
const Kernels* const kernels_avx2 = nullptr;
}
#endif
