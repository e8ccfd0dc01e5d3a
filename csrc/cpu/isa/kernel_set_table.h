// All kernels but those of topk_threshold_, compiled once per instruction set (no include guard on purpose). A kernel's
// header has no guard either, needs what stands before it here, and lives in the set's namespace.
// clang-format off
#include "target.h"
#include "kernel_set.h"
#ifdef CPU_CAPABILITY
#include "../lanes.h"
#include "../group_reduce.h"
#include "../group_score_cpu.h"
#include "../prox_cpu.h"
#include "../rmda_step_cpu.h"
#include "../prox_sgd_cpu.h"
#include "../gram_obs/gram_obs_cpu.h"
#include "../glm/glm_cpu.h"
#include "../masked_cg/masked_cg_cpu.h"
#include "../metric_step/metric_step_cpu.h"
// clang-format on

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

// In the order of dtype_index.
#define SPARSE_ACCEL_ALL_DTYPES(kernel) {&kernel<float>, &kernel<double>, &kernel<c10::BFloat16>, &kernel<c10::Half>}

static const Kernels group_table = {
    SPARSE_ACCEL_ALL_DTYPES(score),      SPARSE_ACCEL_ALL_DTYPES(score_sums), SPARSE_ACCEL_ALL_DTYPES(score_join),
    SPARSE_ACCEL_ALL_DTYPES(prox),       SPARSE_ACCEL_ALL_DTYPES(prox_sums),  SPARSE_ACCEL_ALL_DTYPES(prox_join),
    SPARSE_ACCEL_ALL_DTYPES(prox_apply), SPARSE_ACCEL_ALL_DTYPES(rmda),       SPARSE_ACCEL_ALL_DTYPES(rmda_sums),
    SPARSE_ACCEL_ALL_DTYPES(rmda_join),  SPARSE_ACCEL_ALL_DTYPES(rmda_apply), SPARSE_ACCEL_ALL_DTYPES(sgd),
    SPARSE_ACCEL_ALL_DTYPES(sgd_sums),   SPARSE_ACCEL_ALL_DTYPES(sgd_join),   SPARSE_ACCEL_ALL_DTYPES(sgd_apply)};

static const KernelSet kernel_set_table = {
    SPARSE_ACCEL_NAME(CPU_CAPABILITY), group_table, glm_table, gram_obs_table, cg_table, metric_table};

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
#endif

namespace sparse_accel {
SPARSE_ACCEL_EXPORT(KernelSet, kernel_set, kernel_set_table)
}
