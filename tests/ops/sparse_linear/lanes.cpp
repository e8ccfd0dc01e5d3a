// The CPU kernels of sparse_linear over the lanes LANES, against plain loops in double. Plain lanes of 16 stand in for
// those of AVX-512 where there is no such processor: their functions are one instruction each, the rest is this.
#include "cpu/sparse_linear/sparse_linear_lanes.h"

#include "cpu/sparse_linear/sparse_linear_cpu.h"

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

using namespace sparse_accel;

namespace {

int failures = 0;
std::mt19937 generator(7);

#define CHECK(condition, ...)               \
  do {                                      \
    if (!(condition) && ++failures < 10) {  \
      std::printf("FAIL %s  ", #condition); \
      std::printf(__VA_ARGS__);             \
      std::printf("\n");                    \
    }                                       \
  } while (0)

template <class T>
T random_value() {
  if constexpr (std::is_same_v<T, float>) {
    return std::normal_distribution<float>()(generator);
  } else if constexpr (sizeof(T) == 1) {
    return static_cast<T>(static_cast<int>(generator() % 255) - 127);
  } else {  // of either half type: no NaN, no infinity
    return T{static_cast<std::uint16_t>((generator() & 0x83ffu) | (0x3800u + generator() % 4 * 0x400u))};
  }
}

template <class L, class T>
void test(int dtype, std::int64_t rows, std::int64_t columns, double share) {
  const std::int64_t row_tiles = (rows + kTileRows - 1) / kTileRows;
  const std::int64_t column_tiles = (columns + kTileColumns - 1) / kTileColumns;
  std::vector<std::uint8_t> bits(row_tiles * column_tiles * kTileBytes);
  std::vector<std::vector<T>> of_tile(row_tiles * column_tiles);
  std::vector<float> scales(rows * column_tiles), dense(rows * columns);
  for (float& scale : scales) scale = 0.5f + static_cast<float>(generator() % 100) / 100.0f;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      if (std::uniform_real_distribution<double>()(generator) >= share) continue;
      const std::int64_t tile = tile_index(row / kTileRows, column / kTileColumns, row_tiles, column_tiles);
      const std::int64_t at = row % kTileRows * kTileColumns + column % kTileColumns;
      bits[tile * kTileBytes + at / 8] |= static_cast<std::uint8_t>(1 << at % 8);
      of_tile[tile].push_back(random_value<T>());
      const float scale = sizeof(T) == 1 ? scales[row * column_tiles + column / kTileColumns] : 1.0f;
      dense[row * columns + column] = scale * plain_float(of_tile[tile].back());
    }
  }
  std::vector<T> values;
  std::vector<std::int32_t> offsets{0};
  for (const auto& tile : of_tile) {
    values.insert(values.end(), tile.begin(), tile.end());
    while (values.size() * sizeof(T) % kValueAlign) values.push_back(T{});
    offsets.push_back(static_cast<std::int32_t>(values.size() * sizeof(T) / kValueAlign));
  }
  const std::vector<T> exact = values;
  values.resize(values.size() + kValueTail / sizeof(T));
  values.shrink_to_fit();  // the sanitizer sees the end
  const SparseWeight w{values.data(), bits.data(), offsets.data(), scales.data(),
                       rows,          columns,     row_tiles,      column_tiles};
  const SparseKernels kernels = sparse_kernels_of<L>();
  const std::int64_t stride = column_tiles * kTileColumns;
  std::vector<float> x(32 * stride);
  for (std::int64_t b = 0; b < 32; ++b) {
    for (std::int64_t c = 0; c < columns; ++c) x[b * stride + c] = random_value<float>();
  }
  const auto check = [&](std::int64_t b, std::int64_t row, float found, const char* what) {
    double sum = 0, size = 0;
    for (std::int64_t c = 0; c < columns; ++c) {
      const double term = double(dense[row * columns + c]) * double(x[b * stride + c]);
      sum += term;
      size += std::fabs(term);
    }
    CHECK(std::fabs(double(found) - sum) <= 1e-6 * (1 + size), "%s: row %d of input %d, values of kind %d", what,
          int(row), int(b), dtype);
  };
  const std::int64_t middle = row_tiles / 2;  // two threads
  for (std::int64_t batch = 1; batch <= 4; ++batch) {
    std::vector<float> y(batch * rows);
    kernels.few[dtype](w, SparseInput{x.data(), stride, batch}, 0, middle, y.data());
    kernels.few[dtype](w, SparseInput{x.data(), stride, batch}, middle, row_tiles, y.data());
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t row = 0; row < rows; ++row) check(b, row, y[b * rows + row], "few");
    }
  }
  for (int kind = 0; kind < 3; ++kind) {
    const int width = kernels.width[kind];
    std::vector<float> turned(stride * width, NAN);
    for (std::int64_t c = 0; c < columns; ++c) {
      for (int b = 0; b < width; ++b) turned[c * width + b] = x[b * stride + c];
    }
    std::vector<float> y(rows * width);
    kernels.many[dtype][kind](w, turned.data(), 0, middle, y.data());
    kernels.many[dtype][kind](w, turned.data(), middle, row_tiles, y.data() + middle * kTileRows * width);
    for (int b = 0; b < width; ++b) {
      for (std::int64_t row = 0; row < rows; ++row) check(b, row, y[row * width + b], "many");
    }
  }
  std::vector<float> unpacked(rows * columns, NAN);
  kernels.unpack[dtype](w, 0, row_tiles, unpacked.data());
  for (std::size_t i = 0; i < unpacked.size(); ++i) {
    CHECK(std::fabs(unpacked[i] - dense[i]) <= 1e-6f * std::fabs(dense[i]), "unpacked element %d", int(i));
  }
  if constexpr (std::is_same_v<T, float>) {
    std::vector<float> collected(exact.size(), NAN);
    kernels.collect[0](w, 0, row_tiles, dense.data(), collected.data());
    CHECK(collected == exact, "collected values");
  }
}

template <class L>
void test_all() {
  const std::pair<std::int64_t, std::int64_t> sizes[] = {{1, 1}, {3, 17}, {8, 256}, {75, 300}};
  for (const auto& [rows, columns] : sizes) {
    for (double share : {0.4, 1.0}) {
      test<L, float>(0, rows, columns, share);
      test<L, Bfloat16Bits>(1, rows, columns, share);
      test<L, HalfBits>(2, rows, columns, share);
      test<L, std::int8_t>(3, rows, columns, share);
    }
  }
}

}  // namespace

int main() {
  test_all<LANES>();
  std::puts(failures ? "wrong" : "all correct");
  return failures != 0;
}
