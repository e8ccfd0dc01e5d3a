// The kernels of topk_threshold_ for DEFAULT. Without these defines at::vec is scalar.
#include "topk_threshold_kernels.h"
#define CPU_CAPABILITY DEFAULT
#define CPU_CAPABILITY_DEFAULT
#include "topk_threshold_set.h"
namespace sparse_accel {
const TopkKernels* const topk_kernels_default = &CPU_CAPABILITY::topk_table;
}
