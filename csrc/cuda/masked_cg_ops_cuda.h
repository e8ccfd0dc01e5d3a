#pragma once
// masked_cg on CUDA; arguments are checked, outputs allocated.

#include "../cpu/masked_cg/masked_cg_kernels.h"

namespace sparse_accel::cuda {

// The first directions, or a step, of `number` rows; nothing waits. `like` gives device and dtype.
void cg(const Tensor& like, const CgRows& rows, int64_t number, bool begin);

}  // namespace sparse_accel::cuda
