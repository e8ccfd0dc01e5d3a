#pragma once
// The kernels, of which there is a build per instruction set; those for this machine are chosen at run time.
#include "../glm/glm_kernels.h"
#include "../gram_obs/gram_obs_kernels.h"
#include "../kernels.h"
#include "../masked_cg/masked_cg_kernels.h"
#include "../metric_step/metric_step_kernels.h"
#include "../sparse_linear/sparse_linear_kernels.h"
#include "../topk_threshold/topk_threshold_kernels.h"

namespace sparse_accel {

struct KernelSet {
  const char* name;  // as PyTorch calls the instruction set
  const Kernels& groups;
  const GlmKernels& glm;
  const GramObsKernels& gram_obs;
  const CgKernels& masked_cg;
  const MetricKernels& metric;
};

// Null where that instruction set was not compiled in.
extern const KernelSet* const kernel_set_default;
extern const KernelSet* const kernel_set_avx2;
extern const KernelSet* const kernel_set_avx512;
extern const TopkKernels* const topk_kernels_default;
extern const TopkKernels* const topk_kernels_avx2;
extern const TopkKernels* const topk_kernels_avx512;
extern const SparseKernels* const sparse_kernels_default;
extern const SparseKernels* const sparse_kernels_avx2;
extern const SparseKernels* const sparse_kernels_avx512;

namespace cpu {

// Those for this machine (honours ATEN_CPU_CAPABILITY).
const KernelSet& kernel_set();
const TopkKernels& topk_kernels();
const SparseKernels& sparse_kernels();

}  // namespace cpu
}  // namespace sparse_accel
