#include "group_topk_cpu.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <memory>
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
constexpr int64_t kFew = 1 << 12;  // candidates that are sorted apart at once

using Histogram = std::array<int64_t, 1 << kDigitBits>;

// Radix select, one digit of the keys a round. The first round reads all scores; those whose digit is larger than that
// of the k-th largest are in, and those with the same digit are the candidates of the next round.
template <class T>
class Selection {
 public:
  explicit Selection(const std::vector<ScoreVector>& vectors) {
    for (const ScoreVector& own : vectors) {
      for (int64_t at = 0; at < own.length; at += kScoreChunk) {
        chunks_.push_back(
            {static_cast<const T*>(own.scores) + at, own.mask + at, std::min(kScoreChunk, own.length - at)});
      }
      total_ += own.length;
    }
  }

  void choose(int64_t k) {
    int low = kBits - kDigitBits;
    const Histogram counts = count<true>(low);
    CHECK_VALUE(!nan_, "group_topk: scores: expected numbers that can be ordered, got NaN");
    if (k == 0 || k == total_) {
      for (const Chunk& chunk : chunks_) std::memset(chunk.mask, k != 0, chunk.length);
      return;
    }
    wanted_ = k;
    int64_t candidates = part<true>(counts, low);
    while (low > 0 && candidates > kFew) {
      low = std::max(0, low - kDigitBits);
      candidates = part<false>(count<false>(low), low);
    }
    finish();
  }

 private:
  using Key = decltype(key_of(T()));
  static constexpr int kBits = 8 * sizeof(Key);

  // A contiguous piece of one score vector, at most kScoreChunk long, and its candidates.
  struct Chunk {
    const T* scores;
    bool* mask;
    int64_t length;
    std::vector<Key> keys{};
    std::vector<uint16_t> places{};
  };

  static size_t digit_of(Key key, int low) { return size_t(key >> low) & (Histogram().size() - 1); }

  // How many keys have each digit; in the first round of all scores, and whether there is NaN.
  template <bool first>
  Histogram count(int low) {
    struct Slot {
      Histogram even{}, odd{};  // neighbours are often alike, and one counter would wait for itself
      bool nan = false;
    };
    std::vector<Slot> slots(size_t(std::min(num_threads(), std::max<int64_t>(1, number()))));
    parallel_for(0, number(), 1, [&](int64_t lo, int64_t hi) {
      Slot& own = slots[size_t(thread_num())];
      for (int64_t c = lo; c < hi; ++c) {
        const Chunk& chunk = chunks_[c];
        const int64_t length = first ? chunk.length : int64_t(chunk.keys.size());
        const auto digit = [&](int64_t i) {
          if constexpr (first) return digit_of(key_of(chunk.scores[i]), low);
          return digit_of(chunk.keys[i], low);
        };
        int64_t i = 0;
        for (; i + 1 < length; i += 2) ++own.even[digit(i)], ++own.odd[digit(i + 1)];
        if (i < length) ++own.even[digit(i)];
        if constexpr (first) {
          for (i = 0; i < length; ++i) own.nan |= chunk.scores[i] != chunk.scores[i];
        }
      }
    });
    Histogram sum{};
    for (const Slot& slot : slots) {
      for (size_t d = 0; d < sum.size(); ++d) sum[d] += slot.even[d] + slot.odd[d];
      nan_ |= slot.nan;
    }
    return sum;
  }

  // Larger digits are in, the k-th largest's own remain. Returns how many.
  template <bool first>
  int64_t part(const Histogram& counts, int low) {
    size_t digit = counts.size() - 1;
    while (counts[digit] < wanted_) wanted_ -= counts[digit--];
    parallel_for(0, number(), 1, [&](int64_t lo, int64_t hi) {
      int64_t longest = 0;
      for (int64_t c = lo; c < hi; ++c) longest = std::max(longest, chunks_[c].length);
      std::vector<Key> keys(static_cast<size_t>(longest));
      std::vector<uint16_t> places(keys.size());
      for (int64_t c = lo; c < hi; ++c) {
        Chunk& chunk = chunks_[c];
        const int64_t length = first ? chunk.length : int64_t(chunk.keys.size());
        size_t left = 0;
        for (int64_t i = 0; i < length; ++i) {
          const Key key = first ? key_of(chunk.scores[i]) : chunk.keys[i];
          const auto place = first ? static_cast<uint16_t>(i) : chunk.places[i];
          const size_t own = digit_of(key, low);
          if (first || own > digit) chunk.mask[place] = own > digit;
          keys[left] = key;  // overwritten by the next unless it stays
          places[left] = place;
          left += own == digit;
        }
        chunk.keys.assign(keys.begin(), keys.begin() + left);
        chunk.places.assign(places.begin(), places.begin() + left);
      }
    });
    return counts[digit];
  }

  // Of the candidates that are left, the `wanted_` largest; ties go to the lowest index.
  void finish() {
    std::vector<Key> keys;
    for (const Chunk& chunk : chunks_) keys.insert(keys.end(), chunk.keys.begin(), chunk.keys.end());
    std::nth_element(keys.begin(), keys.begin() + (wanted_ - 1), keys.end(), std::greater<>());
    const Key threshold = keys[size_t(wanted_ - 1)];
    int64_t ties = wanted_ - std::count_if(keys.begin(), keys.end(), [&](Key key) { return key > threshold; });
    for (const Chunk& chunk : chunks_) {
      for (size_t i = 0; i < chunk.keys.size(); ++i) {
        const Key key = chunk.keys[i];
        if (key > threshold || (key == threshold && ties-- > 0)) chunk.mask[chunk.places[i]] = true;
      }
    }
  }

  int64_t number() const { return int64_t(chunks_.size()); }

  std::vector<Chunk> chunks_;
  int64_t total_ = 0, wanted_ = 0;
  bool nan_ = false;
};

template <class T>
void group_topk_of(const std::vector<ScoreVector>& vectors, int64_t k) {
  int64_t total = 0;
  for (const ScoreVector& own : vectors) total += own.length;
  if (vectors.size() == 1 || total > kScoreChunk) return Selection<T>(vectors).choose(k);
  // Few in all: one piece of memory for them takes less time than pieces with candidates of their own.
  std::vector<T> scores(static_cast<size_t>(total));
  const auto mask = std::make_unique<bool[]>(scores.size());
  int64_t at = 0;
  for (const ScoreVector& own : vectors) {
    std::copy_n(static_cast<const T*>(own.scores), own.length, scores.data() + at);
    at += own.length;
  }
  Selection<T>({{scores.data(), mask.get(), total}}).choose(k);
  at = 0;
  for (const ScoreVector& own : vectors) {
    std::copy_n(mask.get() + at, own.length, own.mask);
    at += own.length;
  }
}

}  // namespace

void group_topk(int dtype, const std::vector<ScoreVector>& vectors, int64_t k) {
  constexpr void (*of[])(const std::vector<ScoreVector>&, int64_t) = {
      &group_topk_of<float>, &group_topk_of<double>, &group_topk_of<c10::BFloat16>, &group_topk_of<c10::Half>};
  of[dtype](vectors, k);
}

}  // namespace sparse_accel::cpu
