// The kernels of topk_threshold_, compiled once per instruction set: all that they are made of, in order (no include
// guard on purpose).
// clang-format off
#include "../isa/target.h"
#include "../isa/kernel_set.h"
#ifdef CPU_CAPABILITY
#include "../lanes.h"
#include "topk_threshold_lanes.h"
#include "topk_threshold_bits.h"
#include "topk_threshold_bytes.h"
#include "topk_threshold_sort.h"
#include "topk_threshold_scores.h"
#include "topk_threshold_select.h"
#include "topk_threshold_blocks.h"
#include "topk_threshold_groups.h"
#include "topk_threshold_cpu.h"
#endif
// clang-format on

namespace sparse_accel {
SPARSE_ACCEL_EXPORT(TopkKernels, topk_kernels, topk_table)
}
