#pragma once
#include "sparse_linear_kernels.h"

namespace sparse_accel::cpu {

// y [batch, rows] = activation(x [batch, columns] W^T + bias [rows], if any), on all threads. dtype: of the values.
void sparse_linear(int dtype, const SparseWeight& w, const float* x, std::int64_t batch, const float* bias,
                   Activation activation, float* y);

// The dense weight's rows of row tiles first, ..., last - 1: [rows of them, columns].
void sparse_unpack(int dtype, const SparseWeight& w, std::int64_t first, std::int64_t last, float* dense);

// Of a dense matrix [rows, columns] with elements of `size` bytes, 4 or 2: the kept ones to where w has its values, and
// zeros up to the next tile's.
void sparse_collect(int size, const SparseWeight& w, const void* dense, void* values);

// y [batch, rows]: bias and activation, in place.
void sparse_finish(float* y, std::int64_t batch, std::int64_t rows, const float* bias, Activation activation);

}  // namespace sparse_accel::cpu
