#pragma once
// The kernels of sparse_linear, of each instruction set: plain data in, plain data out.
#include <cstdint>

#include "../../sparse_linear.h"

namespace sparse_accel {

constexpr int kSparseDtypes = 4;  // values: float, bfloat16, half, int8 with scales

// A weight in the bitmask format.
struct SparseWeight {
  const void* values;
  const std::uint8_t* bits;     // [tiles, kTileBytes]
  const std::int32_t* offsets;  // [tiles + 1], in units of kValueAlign bytes
  const float* scales;          // [rows, column_tiles] of int8 values
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t row_tiles;
  std::int64_t column_tiles;
};

// Inputs of up to 4 rows, in float: [batch, stride], zeros from `columns` up to whole tiles.
struct SparseInput {
  const float* x;
  std::int64_t stride;
  std::int64_t batch;
};

// The sums are in float; every kernel writes the rows of row tiles first, ..., last - 1.
struct SparseKernels {
  // Few inputs: every weight is put in its place in a register. y [batch, rows].
  void (*few[kSparseDtypes])(const SparseWeight&, const SparseInput&, std::int64_t first, std::int64_t last, float* y);
  // More: only kept weights are multiplied, each with `width` inputs. x [column_tiles * kTileColumns, width],
  // y [rows of the tiles, width].
  void (*many[kSparseDtypes][3])(const SparseWeight&, const float* x, std::int64_t first, std::int64_t last, float* y);
  int width[3];
  // The dense weight, [rows of the tiles, columns] in float.
  void (*unpack[kSparseDtypes])(const SparseWeight&, std::int64_t first, std::int64_t last, float* dense);
  // The other way: elements of 4 or 2 bytes of a dense matrix [rows, columns] to where the values stand.
  void (*collect[2])(const SparseWeight&, std::int64_t first, std::int64_t last, const void* dense, void* values);
};

}  // namespace sparse_accel
