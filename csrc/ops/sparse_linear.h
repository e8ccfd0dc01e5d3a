#pragma once

#include <optional>
#include <string>

#include "common.h"

namespace sparse_accel {

// Products with a weight W in the bitmask format of ../sparse_linear.h:
//   values   [V] float32, bfloat16, float16, or int8 with scales: kept values, each tile's from a 16-byte boundary on;
//            64 bytes follow
//   bits     [tiles, 256] uint8
//   offsets  [tiles + 1] int32: where each tile's values begin, and where the last one's end, in units of 16 bytes
//   scales   [rows, tiles in a row] float32, of int8 values
// Sums are in float32. On the CPU x, bias, y and dense matrices are float32, on CUDA of the values' dtype, or of int8
// values' products any.

// y = activation(x W^T + bias): x [batch, columns], bias [rows], y [batch, rows]. Returns false, with nothing done,
// where a dense product with unpacked weights is faster.
bool sparse_linear(const Tensor& x, const Tensor& values, const Tensor& bits, const Tensor& offsets,
                   const std::optional<Tensor>& scales, const std::optional<Tensor>& bias,
                   const std::string& activation, const Tensor& y);

// Row tiles first, ..., last - 1 of the dense weight into dense [rows of them, columns]; of W's rows in all.
void sparse_unpack(const Tensor& values, const Tensor& bits, const Tensor& offsets, const std::optional<Tensor>& scales,
                   std::int64_t rows, std::int64_t first, std::int64_t last, const Tensor& dense);

// Of a dense matrix the kept elements where a weight in the format has its values: values [V], zeros, of its dtype.
// The adjoint of unpacking.
void sparse_collect(const Tensor& dense, const Tensor& bits, const Tensor& offsets, const Tensor& values);

// y [batch, rows] = activation(y + bias), in place.
void sparse_finish(const Tensor& y, const std::optional<Tensor>& bias, const std::string& activation);

}  // namespace sparse_accel
