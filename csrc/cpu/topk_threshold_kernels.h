#pragma once
// What the three instruction-set builds of the kernels of topk_threshold_ export.
#include <cstdint>

#include "../math.h"

namespace sparse_accel {

// Scores, as they are read: numbers, or magnitudes of numbers, times a factor that depends on the place.
enum class TopkKind : int { given = 0, magnitude = 1, scaled = 2 };
constexpr int kTopkKinds = 3;

struct TopkSource {
  const void* data;
  const void* scale;  // [period + kTopkWord] in the compute type, periodic: element i has the factor scale[i % period]
  int64_t period;     // >= kTopkWord
};

// Where results go, from a range's first element on.
struct TopkTarget {
  void* x;
  int64_t x_bytes;  // of an element: 2, 4 or 8
  bool* mask;
};

constexpr int64_t kTopkAhead = 4096;  // how far ahead memory is fetched, in bytes
constexpr int64_t kTopkWord = 64;     // elements that are looked at together

constexpr int64_t kAllTies = INT64_MAX;

// How many numbers lie above a bracket [low, high] and in it. Those in it are copied out, unless they are all equal.
struct TopkCounts {
  int64_t above;
  int64_t inside;
  bool has_nan;
};

// The k-th largest of some numbers: how many of those equal to it are among the k, and how many there are.
struct TopkRank {
  double value;
  int64_t wanted;
  int64_t equal;
};

// Elements of the compute type that `select` needs to work on.
SPARSE_ACCEL_HOST_DEVICE int64_t topk_scratch(int64_t n) { return 2 * (n + kTopkWord) + n + 1024; }

// How many of n numbers are drawn to bracket one of them: half of n^(2/3) balances drawing against what is left inside.
SPARSE_ACCEL_HOST_DEVICE int64_t topk_sample_size(int64_t n) {
  const double root = __builtin_cbrt(double(n));
  return static_cast<int64_t>(0.5 * root * root);
}

// Number i of a sample is element i * step + jitter of it: without, a period of the data could hit the step's.
SPARSE_ACCEL_HOST_DEVICE int64_t topk_jitter(int64_t i, int64_t step) {
  const uint32_t hash = static_cast<uint32_t>(i) * 2654435769u;
  const int64_t most = step < 65536 ? step : 65536;
  return static_cast<int64_t>((uint64_t(hash >> 16) * uint64_t(most)) >> 16);
}

// Ranks in the sample, from 1 for the largest, that bracket the k-th largest of n but for `deviations`. A high rank of
// 0 and a low rank past the sample stand for the infinities.
struct TopkRanks {
  int64_t high, low;
};
SPARSE_ACCEL_HOST_DEVICE TopkRanks topk_bracket(int64_t n, int64_t k, int64_t sample, double deviations) {
  const double share = (double(k) - 0.5) / double(n), middle = share * double(sample);
  const double slack = deviations * __builtin_sqrt(middle * (1 - share)) + 0.5;
  const double high = middle - slack, low = middle + slack + 1;
  return {high < 1 ? 0 : static_cast<int64_t>(high), static_cast<int64_t>(low) + 1};
}

// Whether the k-th largest lies outside the bracket; moves the bracket to where it is.
SPARSE_ACCEL_HOST_DEVICE bool topk_miss(const TopkCounts& counts, int64_t k, double& low, double& high) {
  if (k <= counts.above) {
    low = high;
    high = __builtin_inf();
    return true;
  }
  if (k > counts.above + counts.inside) {
    high = low;
    low = -__builtin_inf();
    return true;
  }
  return false;
}

// Ranges are [begin, begin + count) of the source. Numbers in and out are in the compute type; a buffer that receives
// what is inside has room for kTopkWord more.
struct TopkKernels {
  bool (*has_nan[kTopkKinds][4])(const TopkSource&, int64_t begin, int64_t count);
  // Copies scores out; whether there was NaN among them.
  bool (*read[kTopkKinds][4])(const TopkSource&, int64_t begin, int64_t count, void* out);
  // `number` scores spread over [0, size), the same for the same size; whether there was NaN among them.
  bool (*sample[kTopkKinds][4])(const TopkSource&, int64_t size, int64_t number, void* out);
  void (*classify[kTopkKinds][4])(const TopkSource&, int64_t begin, int64_t count, double low, double high,
                                  void* inside, TopkCounts*);
  // Keeps scores > threshold, and the first `ties` of those equal to it. Returns how many ties are left.
  int64_t (*keep[kTopkKinds][4])(const TopkSource&, int64_t begin, int64_t count, double threshold, int64_t ties,
                                 const TopkTarget&);
  // Keeps the n largest of every m neighbours; count is a multiple of m.
  void (*keep_blocks[kTopkKinds][4])(const TopkSource&, int64_t begin, int64_t count, int n, int m, const TopkTarget&);
  // The k-th largest of numbers[0 .. n), 1 <= k <= n, without NaN; they stay as they are.
  TopkRank (*select[2])(const void* numbers, int64_t n, int64_t k, void* scratch);
  // How many numbers equal the value.
  int64_t (*count_equal[2])(const void* numbers, int64_t n, double value);
  // x = mask ? x : 0
  void (*zero_outside)(const TopkTarget&, int64_t count);
};

// Null where that instruction set was not compiled in.
extern const TopkKernels* const topk_kernels_default;
extern const TopkKernels* const topk_kernels_avx2;
extern const TopkKernels* const topk_kernels_avx512;

}  // namespace sparse_accel
