#include "group_topk_cpu.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../torch_runtime.h"

namespace sparse_accel::cpu {
namespace {

// Unsigned integers in the order of the floating numbers they encode; +0 and -0 are one key.
template <class T>
auto key_of(T value) {
  using Key = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
  constexpr Key sign = Key(1) << (8 * sizeof(T) - 1);
  Key bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (bits == sign) bits = 0;
  return static_cast<Key>(bits & sign ? ~bits : bits | sign);
}

constexpr int kDigitBits = 11;
constexpr int64_t kScoreChunk = 1 << 15;

using Histogram = std::array<int64_t, 1 << kDigitBits>;

// A contiguous piece of one score vector, at most kScoreChunk long.
template <class T>
struct Chunk {
  const T* scores;
  bool* mask;
  int64_t length;
};

template <class T>
std::vector<Chunk<T>> make_chunks(const std::vector<ScoreVector>& vectors) {
  std::vector<Chunk<T>> chunks;
  for (const ScoreVector& own : vectors) {
    for (int64_t at = 0; at < own.length; at += kScoreChunk) {
      chunks.push_back({static_cast<const T*>(own.scores) + at, own.mask + at, std::min(kScoreChunk, own.length - at)});
    }
  }
  return chunks;
}

template <class T>
bool any_nan(const std::vector<Chunk<T>>& chunks) {
  return parallel_reduce(
      0, static_cast<int64_t>(chunks.size()), 1, false,
      [&](int64_t lo, int64_t hi, bool found) {
        for (int64_t c = lo; c < hi; ++c) {
          for (int64_t i = 0; i < chunks[c].length; ++i) found |= chunks[c].scores[i] != chunks[c].scores[i];
        }
        return found;
      },
      [](bool a, bool b) { return a || b; });
}

// Radix select: the k-th largest key, one digit a round, and how many scores equal to it are wanted.
template <class T>
auto kth_largest(const std::vector<Chunk<T>>& chunks, int64_t k) {
  using Key = decltype(key_of(T()));
  const auto number = static_cast<int64_t>(chunks.size());
  Key prefix = 0, fixed = 0;
  int64_t wanted = k;
  for (int high = 8 * sizeof(Key); high > 0;) {
    const int low = std::max(0, high - kDigitBits);
    const Key digit_mask = static_cast<Key>((Key(1) << (high - low)) - 1);
    const auto histogram = parallel_reduce(
        0, number, 1, Histogram{},
        [&](int64_t lo, int64_t hi, Histogram counts) {
          for (int64_t c = lo; c < hi; ++c) {
            for (int64_t i = 0; i < chunks[c].length; ++i) {
              const Key key = key_of(chunks[c].scores[i]);
              if ((key & fixed) == prefix) ++counts[(key >> low) & digit_mask];
            }
          }
          return counts;
        },
        [](Histogram a, const Histogram& b) {
          for (size_t d = 0; d < a.size(); ++d) a[d] += b[d];
          return a;
        });
    int64_t digit = digit_mask;
    while (histogram[digit] < wanted) wanted -= histogram[digit--];
    prefix = static_cast<Key>(prefix | (static_cast<Key>(digit) << low));
    fixed = static_cast<Key>(fixed | (digit_mask << low));
    high = low;
  }
  return std::pair<Key, int64_t>(prefix, wanted);
}

template <class T>
void select_largest(const std::vector<Chunk<T>>& chunks, int64_t k) {
  const auto number = static_cast<int64_t>(chunks.size());
  const auto [threshold, ties_wanted] = kth_largest(chunks, k);
  std::vector<int64_t> ties(number);
  parallel_for(0, number, 1, [&, threshold = threshold](int64_t lo, int64_t hi) {
    for (int64_t c = lo; c < hi; ++c) {
      for (int64_t i = 0; i < chunks[c].length; ++i) {
        const auto key = key_of(chunks[c].scores[i]);
        chunks[c].mask[i] = key > threshold;
        ties[c] += key == threshold;
      }
    }
  });
  int64_t left = ties_wanted;  // ties go to the lowest index
  for (int64_t c = 0; c < number && left > 0; ++c) {
    if (ties[c] == 0) continue;
    for (int64_t i = 0; i < chunks[c].length && left > 0; ++i) {
      if (key_of(chunks[c].scores[i]) == threshold) chunks[c].mask[i] = true, --left;
    }
  }
}

template <class T>
void group_topk_of(const std::vector<ScoreVector>& vectors, int64_t k) {
  const auto chunks = make_chunks<T>(vectors);
  CHECK_VALUE(!any_nan(chunks), "group_topk: scores: expected numbers that can be ordered, got NaN");
  int64_t total = 0;
  for (const auto& chunk : chunks) total += chunk.length;
  if (k == 0 || k == total) {
    for (const auto& chunk : chunks) std::memset(chunk.mask, k != 0, chunk.length);
  } else {
    select_largest(chunks, k);
  }
}

}  // namespace

void group_topk(int dtype, const std::vector<ScoreVector>& vectors, int64_t k) {
  constexpr void (*of[])(const std::vector<ScoreVector>&, int64_t) = {
      &group_topk_of<float>, &group_topk_of<double>, &group_topk_of<c10::BFloat16>, &group_topk_of<c10::Half>};
  of[dtype](vectors, k);
}

}  // namespace sparse_accel::cpu
