#pragma once
// The bitmask format of sparse weights [rows, columns], shared by the CPU and the CUDA kernels.
//
// A tile is 8 rows of 256 columns: one bit per weight, 32 bytes a row, bit i of byte j for column 8 j + i; and its kept
// values, row after row, from a 16-byte boundary on. Eight tiles below each other lie behind each other (a panel of 64
// rows), then come those of the next 256 columns, then the next panel: a panel's sums and a block of the inputs stay on
// chip while values and bits pass once, in the order of memory. What is beyond rows and columns has no bits.
#include <cmath>
#include <cstdint>

#include "math.h"

namespace sparse_accel {

constexpr int kTileRows = 8;
constexpr int kTileColumns = 256;
constexpr int kRowBytes = kTileColumns / 8;        // of bits
constexpr int kTileBytes = kTileRows * kRowBytes;  // of bits
constexpr int kPanelTiles = 8;                     // below each other
constexpr int kPanelRows = kPanelTiles * kTileRows;
constexpr int kValueAlign = 16;  // bytes: where a tile's values begin; offsets count these
constexpr int kValueTail = 64;   // bytes after the last value that may be read

// Where the tile of 8 rows `row_tile` and of 256 columns `column_tile` stands among all.
SPARSE_ACCEL_HOST_DEVICE std::int64_t tile_index(std::int64_t row_tile, std::int64_t column_tile,
                                                 std::int64_t row_tiles, std::int64_t column_tiles) {
  const std::int64_t before = row_tile / kPanelTiles * kPanelTiles;  // tiles in a column of the panels before
  const std::int64_t left = row_tiles - before, height = left < kPanelTiles ? left : kPanelTiles;
  return before * column_tiles + column_tile * height + (row_tile - before);
}

// What follows the product; gelu by erf, gelu_tanh by its approximation.
enum class Activation : int { none = 0, relu = 1, gelu = 2, gelu_tanh = 3, silu = 4 };

SPARSE_ACCEL_HOST_DEVICE float activate(float x, Activation activation) {
  switch (activation) {
    case Activation::relu:
      return x < 0.0f ? 0.0f : x;  // NaN stays
    case Activation::gelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case Activation::gelu_tanh:
      return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case Activation::silu:
      return x / (1.0f + expf(-x));
    default:
      return x;
  }
}

}  // namespace sparse_accel
