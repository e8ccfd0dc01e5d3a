// The CPU kernels for DEFAULT. Without these defines at::vec is scalar.
#include "kernels.h"
#define CPU_CAPABILITY DEFAULT
#define CPU_CAPABILITY_DEFAULT
#include "lanes.h"
#include "group_reduce.h"
#include "group_score_cpu.h"
#include "prox_cpu.h"
#include "rmda_step_cpu.h"
#include "table.h"
namespace sparse_accel {
const Kernels* const kernels_default = &CPU_CAPABILITY::table;
}
