// The kernels of topk_threshold_ for DEFAULT. Without these defines at::vec is scalar.
#include "topk_threshold_kernels.h"
#define CPU_CAPABILITY DEFAULT
#define CPU_CAPABILITY_DEFAULT
#include "lanes.h"
#include "topk_threshold_lanes.h"
#include "topk_threshold_scores.h"
#include "topk_threshold_select.h"
#include "topk_threshold_blocks.h"
#include "topk_threshold_cpu.h"
namespace sparse_accel {
const TopkKernels* const topk_kernels_default = &CPU_CAPABILITY::topk_table;
}
