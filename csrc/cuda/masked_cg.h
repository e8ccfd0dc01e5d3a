#pragma once
// Launchers of masked_cg: raw pointers, sizes and a stream; no torch.
#include <cstdint>

#include "../cpu/masked_cg/masked_cg_kernels.h"
#include "runtime.h"

namespace sparse_accel::cuda {

// A block per row. dtype f32 or f64; rows.columns > 0, number > 0.
cudaError_t cg_begin(DType dtype, const CgRows& rows, std::int64_t number, cudaStream_t stream);
cudaError_t cg_step(DType dtype, const CgRows& rows, std::int64_t number, cudaStream_t stream);

}  // namespace sparse_accel::cuda
