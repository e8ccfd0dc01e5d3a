// Block backward elimination for DEFAULT.
#include "gram_obs_kernels.h"
#define CPU_CAPABILITY DEFAULT
#define CPU_CAPABILITY_DEFAULT
#include "lanes.h"
#include "gram_obs_cpu.h"
namespace sparse_accel {
const GramObsKernels* const gram_obs_kernels_default = &CPU_CAPABILITY::gram_obs_table;
}
