#pragma once
// Between tensors and launchers: sparse_linear on CUDA; arguments are checked, outputs allocated, nothing is empty.

#include <optional>

#include "../cpu/sparse_linear/sparse_linear_kernels.h"

namespace sparse_accel::cuda {

// y [batch, rows] of x's dtype; x contiguous.
void sparse_linear(const SparseWeight& w, bool int8, const Tensor& x, const void* bias, Activation activation,
                   const Tensor& y);

// Row tiles first, ..., last - 1 into dense [rows of them, columns], of its dtype.
void sparse_unpack(const SparseWeight& w, bool int8, int64_t first, int64_t last, const Tensor& dense);

void sparse_collect(const SparseWeight& w, const Tensor& dense, const Tensor& values);

// y [batch, rows]: bias and activation, in place.
void sparse_finish(const Tensor& y, const void* bias, Activation activation);

}  // namespace sparse_accel::cuda
