#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

namespace sparse_accel {

// x W^T + bias, and an activation, with W in the bitmask format of ../sparse_linear.h. Sums are in float32.
//   x        [.., columns] float32, bfloat16 or float16
//   values   [V] of x's dtype, or int8 with scales: kept values, each tile's from a 16-byte boundary on; 64 bytes
//   follow bits     [tiles, 256] uint8 offsets  [tiles + 1] int32: where each tile's values begin, and where the last
//   one's end, in units of 16 bytes scales   [rows, tiles in a row] float32, of int8 values bias     [rows] of x's
//   dtype
// Returns [.., rows] of x's dtype.
at::Tensor sparse_linear(const at::Tensor& x, const at::Tensor& values, const at::Tensor& bits,
                         const at::Tensor& offsets, const std::optional<at::Tensor>& scales,
                         const std::optional<at::Tensor>& bias, int64_t rows, const std::string& activation);

// The dense weight [rows, columns], of values' dtype or, of int8, float32.
at::Tensor sparse_unpack(const at::Tensor& values, const at::Tensor& bits, const at::Tensor& offsets,
                         const std::optional<at::Tensor>& scales, int64_t rows, int64_t columns);

// Of a dense matrix [rows, columns] the kept elements where a weight in the format has its values, zeros between them:
// [length], of dense's dtype. The adjoint of unpacking.
at::Tensor sparse_collect(const at::Tensor& dense, const at::Tensor& bits, const at::Tensor& offsets, int64_t length);

}  // namespace sparse_accel
