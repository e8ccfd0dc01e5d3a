#pragma once
#include "masked_cg_kernels.h"

namespace sparse_accel::cpu {

// The first directions, then steps, of all rows on all threads; dtype 0 float, 1 double. How many rows are not solved.
int64_t cg_begin(int dtype, const CgRows& rows, int64_t number);
int64_t cg_step(int dtype, const CgRows& rows, int64_t number);

}  // namespace sparse_accel::cpu
