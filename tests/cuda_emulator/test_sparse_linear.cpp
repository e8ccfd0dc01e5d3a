// Products with weights in the bitmask format against plain loops in double, and the bytes that they move.
#ifndef __CUDACC__
#include <atomic>
#include <cstddef>
namespace {
std::atomic<std::size_t> counted{0};
}
#define COUNT_GLOBAL_BYTES(bytes) counted.fetch_add(bytes, std::memory_order_relaxed)
#endif
#include "check.h"
#include "sparse_linear.cu"

using namespace sparse_accel;
using namespace check;

namespace {

// A weight in the format, made by hand.
template <class T>
struct Made {
  std::int64_t rows, columns, row_tiles, column_tiles, kept = 0;
  std::vector<double> dense;
  std::vector<T> values;
  std::vector<unsigned char> bits;
  std::vector<std::int32_t> offsets{0};
  std::vector<float> scales;

  Made(std::int64_t rows_, std::int64_t columns_, double share)
      : rows(rows_),
        columns(columns_),
        row_tiles((rows_ + kTileRows - 1) / kTileRows),
        column_tiles((columns_ + kTileColumns - 1) / kTileColumns),
        dense(std::size_t(rows_ * columns_)),
        bits(std::size_t(row_tiles * column_tiles * kTileBytes)) {
    std::uniform_real_distribution<double> uniform;
    for (std::int64_t i = 0; i < rows * column_tiles; ++i) scales.push_back(float(uniform(generator())));
    std::vector<std::vector<T>> of_tile(std::size_t(row_tiles * column_tiles));
    for (std::int64_t row = 0; row < row_tiles * kTileRows; ++row) {
      for (std::int64_t column = 0; column < column_tiles * kTileColumns; ++column) {
        if (row >= rows || column >= columns || uniform(generator()) >= share) continue;
        const std::int64_t tile = tile_index(row / kTileRows, column / kTileColumns, row_tiles, column_tiles);
        const std::int64_t at = row % kTileRows * kTileColumns + column % kTileColumns;
        bits[std::size_t(tile * kTileBytes + at / 8)] |= static_cast<unsigned char>(1 << at % 8);
        of_tile[std::size_t(tile)].push_back(one());
        dense[std::size_t(row * columns + column)] = number_of(of_tile[std::size_t(tile)].back(), row, column);
        ++kept;
      }
    }
    const std::size_t unit = kValueAlign / sizeof(T);
    for (const auto& tile : of_tile) {
      values.insert(values.end(), tile.begin(), tile.end());
      while (values.size() % unit) values.push_back(T{});
      offsets.push_back(std::int32_t(values.size() / unit));
    }
  }
  static T one() {
    if constexpr (sizeof(T) == 1) {
      return T(generator()() % 255 - 127);
    } else {
      return normal<T>(1)[0];
    }
  }
  double number_of(T x, std::int64_t row, std::int64_t column) const {
    if constexpr (sizeof(T) == 1) {
      return double(scales[std::size_t(row * column_tiles + column / kTileColumns)]) * double(x);
    } else {
      return value(x);
    }
  }
};

template <class T, class X>
void test(std::int64_t rows, std::int64_t columns, double share, std::int64_t batch) {
  const Made<T> made(rows, columns, share);
  // No byte behind the last value: what a GPU reads ends with the last tile.
  Device<T> values(made.values);
  Device<unsigned char> bits(made.bits);
  Device<std::int32_t> offsets(made.offsets);
  Device<float> scales(made.scales);
  const SparseWeight w{values.get(), bits.get(), offsets.get(),  scales.get(),
                       rows,         columns,    made.row_tiles, made.column_tiles};
  const std::vector<X> x = normal<X>(batch * columns), bias = normal<X>(rows);
  Device<X> dx(x), dbias(bias), y(std::size_t(batch * rows)), dense(std::size_t(rows * columns));
  const cuda::SparseTypes types{sizeof(T) == 1, kDType<X>};
  std::vector<X> before;
  for (int turn = 0; turn < 2; ++turn) {
    Scratch scratch;
#ifndef __CUDACC__
    counted = 0;
#endif
    cuda::sparse_linear(types, w, dx.get(), batch, dbias.get(), Activation::relu, y.get(), scratch.allocate(), nullptr);
    cudaDeviceSynchronize();
#ifndef __CUDACC__
    if (batch == 1 && rows % kPanelRows == 0 && columns % kTileColumns == 0) {
      const double floor = double(made.kept) * sizeof(T) + double(rows * columns) / 8 +
                           double(sizeof(X)) * double(columns + 2 * rows) +
                           (sizeof(T) == 1 ? 4.0 * double(rows * made.column_tiles) : 0.0);
      std::printf("%lld x %lld, %d-byte values, %.0f %% kept: %.3f of the least bytes\n", (long long)rows,
                  (long long)columns, int(sizeof(T)), 100 * share, double(counted.load()) / floor);
      CHECK(double(counted.load()) <= 1.1 * floor, "%zu bytes moved, the least is %.0f", counted.load(), floor);
    }
#endif
    const std::vector<X> found = y.read();
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t row = 0; row < rows; ++row) {
        double sum = value(bias[std::size_t(row)]), size = std::fabs(sum);
        for (std::int64_t c = 0; c < columns; ++c) {
          const double term = made.dense[std::size_t(row * columns + c)] * value(x[std::size_t(b * columns + c)]);
          sum += term;
          size += std::fabs(term);
        }
        const double error = std::fabs(value(found[std::size_t(b * rows + row)]) - (sum > 0 ? sum : 0));
        CHECK(error <= kTolerance<X> * (1 + size), "row %lld of input %lld", (long long)row, (long long)b);
      }
    }
    if (turn == 1) CHECK(same_bits(before, found), "another order, other bits");
    before = found;
    another_order();
  }
  cuda::sparse_unpack(types, w, 0, made.row_tiles, dense.get(), nullptr);
  cudaDeviceSynchronize();
  const std::vector<X> unpacked = dense.read();
  for (std::size_t i = 0; i < unpacked.size(); ++i)
    CHECK(close(value(unpacked[i]), made.dense[i], kTolerance<X>), "unpack");
  if constexpr (std::is_same_v<T, X>) {
    Device<X> collected(std::vector<X>(made.values.size()));
    cuda::sparse_collect(kDType<X>, w, dense.get(), collected.get(), nullptr);
    cudaDeviceSynchronize();
    CHECK(same_bits(collected.read(), made.values), "collect");
  }
}

}  // namespace

int main() {
  return run([] {
    test<float, float>(70, 300, 0.5, 3);
    test<float, float>(128, 768, 0.5, 1);
    test<__nv_bfloat16, __nv_bfloat16>(128, 768, 0.5, 1);
    test<__nv_bfloat16, __nv_bfloat16>(64, 1024, 0.3, 1);
    test<signed char, __nv_bfloat16>(64, 1024, 0.5, 1);
    test<__half, __half>(9, 2048, 0.9, 9);  // two splits
    test<signed char, float>(13, 257, 0.4, 2);
    test<float, float>(3, 600, 1.0, 8);
  });
}
