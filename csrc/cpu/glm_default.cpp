// The kernels of generalized linear models for DEFAULT.
#include "glm_kernels.h"
#define CPU_CAPABILITY DEFAULT
#include "glm_cpu.h"
namespace sparse_accel {
const GlmKernels* const glm_kernels_default = &CPU_CAPABILITY::glm_table;
}
