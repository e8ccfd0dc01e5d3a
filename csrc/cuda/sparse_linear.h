#pragma once
// Launchers of sparse_linear: raw pointers, sizes and a stream; no torch.
#include <cstdint>

#include "../cpu/sparse_linear/sparse_linear_kernels.h"
#include "runtime.h"

namespace sparse_accel::cuda {

// Element types: of values f32, bf16, f16 or, with scales, int8; of inputs and outputs f32, bf16 or f16, as values
// unless these are int8.
struct SparseTypes {
  bool int8;
  DType inputs;
};

// y [batch, rows] = activation(x [batch, columns] W^T + bias [rows], or null). Needs scratch of a few outputs.
cudaError_t sparse_linear(SparseTypes types, const SparseWeight& w, const void* x, std::int64_t batch, const void* bias,
                          Activation activation, void* y, const Allocate& allocate, cudaStream_t stream);

// Row tiles first, ..., last - 1 of the dense weight, of the inputs' type: [rows of them, columns].
cudaError_t sparse_unpack(SparseTypes types, const SparseWeight& w, std::int64_t first, std::int64_t last, void* dense,
                          cudaStream_t stream);

// Of a dense matrix of the inputs' type the kept elements, to where w has its values.
cudaError_t sparse_collect(DType type, const SparseWeight& w, const void* dense, void* values, cudaStream_t stream);

// y [batch, rows]: bias and activation, in place.
cudaError_t sparse_finish(DType type, void* y, std::int64_t batch, std::int64_t rows, const void* bias,
                          Activation activation, cudaStream_t stream);

}  // namespace sparse_accel::cuda
