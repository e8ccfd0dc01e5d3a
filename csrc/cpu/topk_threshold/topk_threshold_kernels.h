#pragma once
// The kernels of topk_threshold_, of each instruction set.
//
// Elements are chosen first, which leaves a bit of each, 64 to a word, and changes nothing: scores that cannot be
// ordered are refused in time. Then the bits are applied: they become the mask, and x is zero where they are not set.
// So memory is passed twice, once for the scores and once for x and the mask.
#include <cmath>
#include <cstdint>

#include "../../math.h"

namespace sparse_accel {

// Scores are numbers as they are, or magnitudes of numbers; or magnitudes times a factor that depends on the place:
// those have kernels of their own.
struct TopkSource {
  const void* data;
  bool magnitude;
  const void* scale;  // [period + kTopkWord] in the compute type, periodic: element i has the factor scale[i % period]
  int64_t period;     // >= kTopkWord
};

// Where results go, from a range's first element on.
struct TopkTarget {
  void* x;
  int64_t x_bytes;  // of an element: 2, 4 or 8
  bool* mask;
  bool passes_cache;  // whether to write the mask past the caches
};

constexpr int64_t kTopkAhead = 4096;  // how far ahead memory is fetched, in bytes
constexpr int64_t kTopkMostAhead = 1 << 17;
constexpr int64_t kTopkWord = 64;  // elements that are looked at together
constexpr int64_t kTopkMostBlock = 32;

constexpr int64_t topk_words(int64_t n) { return (n + kTopkWord - 1) / kTopkWord; }

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

  int64_t ties() const { return wanted == equal ? kAllTies : wanted; }
};

// Elements of the compute type that `select` needs to work on.
constexpr int64_t topk_scratch(int64_t n) { return 2 * (n + kTopkWord) + n + 1024; }

// And those that `choose_rows` needs.
constexpr int64_t topk_row_scratch(int64_t n) { return n + kTopkWord + topk_scratch(n); }

// Neighbouring groups, each of which has `inner` elements, one after another, in each row of memory.
struct TopkStripe {
  int64_t begin, end;  // elements of the source: the stripe's first, and where memory ends
  int64_t rows, row;   // rows of memory, and elements of one
  int64_t column;      // of a row, at which the stripe begins
  int64_t groups, inner;
  int64_t words;  // from the bits of a row to those of the next

  int64_t n() const { return rows * inner; }  // elements of a group
  int64_t columns() const { return groups * inner; }
};

// From 64 columns to the next: not a power of two, at which they would displace each other in the caches.
constexpr int64_t topk_stripe_block(int64_t rows) { return (rows + 9) * kTopkWord; }

// Bytes that `choose_groups` needs.
inline int64_t topk_stripe_scratch(const TopkStripe& stripe) {
  return topk_words(stripe.columns()) * topk_stripe_block(stripe.rows);
}

// How many of n numbers are drawn to bracket one of them: half of n^(2/3) balances drawing against what is left inside.
inline int64_t topk_sample_size(int64_t n) {
  const double root = std::cbrt(double(n));
  return static_cast<int64_t>(0.5 * root * root);
}

// Number i of a sample is element i * step + jitter of it: without, a period of the data could hit the step's.
inline int64_t topk_jitter(int64_t i, int64_t step) {
  const uint32_t hash = static_cast<uint32_t>(i) * 2654435769u;
  const int64_t most = step < 65536 ? step : 65536;
  return static_cast<int64_t>((uint64_t(hash >> 16) * uint64_t(most)) >> 16);
}

// Where the k-th largest is looked for: among the numbers in [low, high], which a sample suggests.
//
// An end that many numbers equal, which would all be copied, is left out: the bracket then ends at the next number, and
// the end is looked at on its own if need be. A bracket that misses tells on which side to look.
class TopkBracket {
 public:
  double low = -HUGE_VAL, high = HUGE_VAL;

  explicit TopkBracket(bool is_double) : is_double_(is_double) {}

  void set_low(double value, bool leave_out) { low_ = {value, !leave_out}; }
  void set_high(double value, bool leave_out) { high_ = {value, !leave_out}; }

  void begin() {
    if (low_.value == high_.value) low_.seen = high_.seen = true;
    low = low_.seen ? low_.value : next(low_.value, true);
    high = high_.seen ? high_.value : next(high_.value, false);
    if (low <= high) return;  // else neighbours
    low = high = low_.value;
    low_.seen = true;
  }

  // Whether the k-th largest was not in the bracket; moves it to where it is.
  bool missed(const TopkCounts& counts, int64_t k) {
    if (k <= counts.above) {
      low = high_.seen ? next(high, true) : high_.value;
      high = high_.seen ? HUGE_VAL : high_.value;
      high_.seen = true;
      return true;
    }
    if (k > counts.above + counts.inside) {
      high = low_.seen ? next(low, false) : low_.value;
      low = low_.seen ? -HUGE_VAL : low_.value;
      low_.seen = true;
      return true;
    }
    return false;
  }

 private:
  struct End {
    double value;
    bool seen;
  };

  // The next number in the compute type.
  double next(double value, bool up) const {
    const double far = up ? HUGE_VAL : -HUGE_VAL;
    return is_double_ ? std::nextafter(value, far)
                      : double(std::nextafter(static_cast<float>(value), static_cast<float>(far)));
  }

  bool is_double_;
  End low_{-HUGE_VAL, true}, high_{HUGE_VAL, true};
};

// Ranges are [begin, begin + count) of the source. Numbers in and out are in the compute type; a buffer that receives
// or gives what is inside has room for kTopkWord more. Bits of a range begin at a word.
// The first index is 1 for magnitudes times a factor, else 0; the other is the dtype of the data, as in dtype_index, or
// 1 where the compute type is double.
struct TopkKernels {
  bool (*has_nan[2][4])(const TopkSource&, int64_t begin, int64_t count);
  // `number` scores spread over [0, size), the same for the same size; whether there was NaN among them.
  bool (*sample[2][4])(const TopkSource&, int64_t size, int64_t number, void* out);
  // Scores above the bracket and inside of it: how many, bits of both, and the numbers inside.
  TopkCounts (*classify[2][4])(const TopkSource&, int64_t begin, int64_t count, const TopkBracket&, void* inside,
                               uint64_t* bits, uint64_t* bits_inside);
  // The k largest of each of some rows of n <= INT32_MAX, the first of them at `begin`; 1 <= k <= n. Whether there was
  // NaN, and then the bits are of no use. Rows follow each other in `source`, and each begins a word of `bits`.
  bool (*choose_rows[2][4])(const TopkSource&, int64_t begin, int64_t rows, int64_t n, int64_t k, void* scratch,
                            uint64_t* bits);
  // As choose_rows, of rows of `columns`: the n largest of every m neighbours, the last of which may be fewer.
  bool (*choose_blocks[2][4])(const TopkSource&, int64_t begin, int64_t rows, int64_t columns, int n, int m,
                              uint64_t* bits);
  // As choose_rows, the k largest of each group of a stripe; bits are those of its columns.
  bool (*choose_groups[2][4])(const TopkSource&, const TopkStripe&, int64_t k, void* scratch, uint64_t* bits);
  // The bracket of the k-th largest of n numbers, given a sample of them, `deviations` wide to each side.
  TopkBracket (*bracket[2])(const void* sample, int64_t size, int64_t n, int64_t k, double deviations, void* scratch);
  // The k-th largest of numbers[0 .. n), 1 <= k <= n, without NaN; they stay as they are.
  TopkRank (*select[2])(const void* numbers, int64_t n, int64_t k, void* scratch);
  // How many numbers equal the value.
  int64_t (*count_equal[2])(const void* numbers, int64_t n, double value);
  // Adds to the bits those inside that are > threshold, and the first `ties` of those equal to it. No numbers: all are.
  void (*settle[2])(uint64_t* bits, const uint64_t* bits_inside, int64_t words, const void* numbers, double threshold,
                    int64_t ties);
  void (*apply)(const uint64_t* bits, int64_t count, const TopkTarget&);
  // x = mask ? x : 0
  void (*zero_outside)(const TopkTarget&, int64_t count);
};

}  // namespace sparse_accel
