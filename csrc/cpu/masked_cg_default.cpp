// The kernels of masked_cg for DEFAULT.
#include "../masked_cg.h"
#include "masked_cg_kernels.h"
#define CPU_CAPABILITY DEFAULT
#include "masked_cg_cpu.h"
namespace sparse_accel {
const CgKernels* const cg_kernels_default = &CPU_CAPABILITY::cg_table;
}
