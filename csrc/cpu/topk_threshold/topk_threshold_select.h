// The k-th largest of many numbers. Included once per instruction set (no include guard on purpose).
//
// A sample brackets it: one pass counts the numbers above the bracket and copies those in it, where the search goes on.
// A bracket that misses, which a sample allows now and then, tells on which side to look: the result is exact for any
// input, and which numbers are drawn depends on how many there are only.

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

// Up to 64 numbers, each with how many are larger: counted for all of them, which no branch has to foresee.
template <class A>
class RankedWord {
 public:
  explicit RankedWord(int64_t n) : n_(n) {
    for (int64_t i = 0; i < kTopkWord; ++i) numbers_[i] = 0;
  }
  A& operator[](int64_t i) { return numbers_[i]; }
  int64_t size() const { return n_; }

  __attribute__((noinline)) void rank() {
    for (int64_t j = 0; j < n_; j += 2 * kLanes<A>) {
      const Vec<A> own = Vec<A>::loadu(numbers_ + j), next = Vec<A>::loadu(numbers_ + j + kLanes<A>);
      Tally<A> above, above_next;
      for (int64_t i = 0; i < n_; ++i) {
        const Vec<A> other(numbers_[i]);
        above.add_greater(other, own);
        above_next.add_greater(other, next);
      }
      above.store(above_ + j);
      above_next.store(above_ + j + kLanes<A>);
    }
  }

  __attribute__((noinline)) TopkRank find(int64_t k) const {
    Count most = -1;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < n_; ++i) most = above_[i] < k && above_[i] > most ? above_[i] : most;
    A value = -A(__builtin_inf());
    Count equal = 0;
#pragma omp simd reduction(max : value) reduction(+ : equal)
    for (int64_t i = 0; i < n_; ++i) {
      const bool found = above_[i] == most;
      value = found && numbers_[i] > value ? numbers_[i] : value;
      equal += found;
    }
    return {double(value), k - int64_t(most), equal};
  }

 private:
  using Count = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  int64_t n_;
  alignas(64) A numbers_[kTopkWord];
  alignas(64) Count above_[kTopkWord];
};

// A pass over scores against a bracket. Bits are written if there is where to; equal numbers are only counted.
template <bool kBits, class S>
static TopkCounts classify_scores(const S& scores, int64_t count, const TopkBracket& bracket, typename S::A* out,
                                  uint64_t* bits_above, uint64_t* bits_inside) {
  using A = typename S::A;
  constexpr int64_t lanes = kLanes<A>;
  const Vec<A> low(static_cast<A>(bracket.low)), high(static_cast<A>(bracket.high));
  const bool copies = bracket.low != bracket.high;
  Tally<A> tally;
  int64_t above = 0, inside = 0;
  uint64_t nan = 0;
  const auto body = [&](const auto& word, int64_t i, uint64_t there) {
    const Numbers<A> numbers(word);
    nan |= numbers.nan();
    uint64_t word_above = 0, word_inside = 0;
    for (int64_t j = 0; j < kTopkWord; j += lanes) {
      const Vec<A> v = numbers.part[j / lanes];
      const uint64_t greater = compare<Order::greater>(v, high);
      const uint64_t bits = compare<Order::greater_or_equal>(v, low) & ~greater & (there >> j);
      if constexpr (kBits) {
        word_above |= greater << j;
        word_inside |= bits << j;
      } else {
        tally.add_greater(v, high);
      }
      if (kHasCompress || bits) {
        if (copies) compress(out + inside, v, bits);
        inside += count_bits(bits);
      }
    }
    if constexpr (kBits) {
      bits_above[i / kTopkWord] = word_above & there;
      bits_inside[i / kTopkWord] = word_inside;
      above += count_bits(word_above & there);
    } else if (~there) [[unlikely]] {  // what is not there was counted like the first
      above -= int64_t(compare<Order::greater>(numbers.part[0], high) & 1) * count_bits(~there);
    }
  };
  for_words(scores, count, body);
  if constexpr (!kBits) {
    std::conditional_t<sizeof(A) == 8, int64_t, int32_t> number[lanes];
    tally.store(number);
    for (int64_t i = 0; i < lanes; ++i) above += number[i];
  }
  return {above, inside, nan != 0};
}

template <class A>
static int64_t count_equal(const void* numbers, int64_t n, double value) {
  int64_t total = 0;
  const A* const p = static_cast<const A*>(numbers);
  for (int64_t i = 0; i < n; ++i) total += p[i] == static_cast<A>(value);
  return total;
}

template <class A>
static TopkRank select(const void* numbers, int64_t n, int64_t k, void* scratch);

// Two ranks of a sample, from 1 for the largest, that enclose the k-th largest of n but for `deviations`; they may lie
// beyond the sample.
inline std::pair<int64_t, int64_t> enclosing_ranks(int64_t size, int64_t n, int64_t k, double deviations) {
  const double share = (double(k) - 0.5) / double(n), middle = share * double(size);
  const double slack = deviations * std::sqrt(middle * (1 - share)) + 0.5;
  return {static_cast<int64_t>(middle - slack), static_cast<int64_t>(middle + slack + 1) + 1};
}

// Ends at those ranks; find(rank) is the sample's number of that rank, with how many equal it.
template <class A, class Find>
static TopkBracket bracket_between(int64_t size, int64_t n, int64_t k, double deviations, const Find& find) {
  constexpr int64_t kHeavy = 32;  // 1 of so many is many
  const auto [high, low] = enclosing_ranks(size, n, k, deviations);
  TopkBracket out(sizeof(A) == 8);
  if (high >= 1) {
    const TopkRank end = find(high);
    out.set_high(end.value, end.equal > size / kHeavy);
  }
  if (low <= size) {
    const TopkRank end = find(low);
    out.set_low(end.value, end.equal > size / kHeavy);
  }
  out.begin();
  return out;
}

template <class A>
static TopkBracket bracket(const void* sample, int64_t size, int64_t n, int64_t k, double deviations, void* scratch) {
  return bracket_between<A>(size, n, k, deviations, [&](int64_t rank) {
    TopkRank end = select<A>(sample, size, rank, scratch);
    end.equal = count_equal<A>(sample, size, end.value);
    return end;
  });
}

template <class A>
SPARSE_ACCEL_ONCE TopkBracket bracket(const RankedWord<A>& sample, int64_t n, int64_t k) {
  return bracket_between<A>(sample.size(), n, k, 2, [&](int64_t rank) { return sample.find(rank); });
}

// From 32 or 64 of the numbers, of many more from as many as pay.
template <class A>
static TopkBracket draw_bracket(const A* numbers, int64_t n, int64_t k, A* scratch) {
  constexpr int64_t kFew = 1024, kMany = 16384;
  const int64_t size = n <= kFew ? kTopkWord / 2 : n <= kMany ? kTopkWord : topk_sample_size(n);
  const int64_t step = n / size;
  if (n > kMany) {
    for (int64_t i = 0; i < size; ++i) scratch[i] = numbers[i * step + topk_jitter(i, step)];
    return bracket<A>(scratch, size, n, k, 4, scratch + size + kTopkWord);
  }
  RankedWord<A> sample(size);
  for (int64_t i = 0; i < size; ++i) sample[i] = numbers[i * step + topk_jitter(i, step)];
  sample.rank();
  return bracket(sample, n, k);
}

// For numbers that no bracket divides: such as zeros, where denormal numbers count as zero.
template <class A>
static TopkRank select_sorting(A* numbers, int64_t n, int64_t k) {
  std::nth_element(numbers, numbers + (k - 1), numbers + n, std::greater<A>());
  const A value = numbers[k - 1];
  const int64_t above = std::count_if(numbers, numbers + n, [&](A number) { return number > value; });
  return {double(value), k - above, count_equal<A>(numbers, n, double(value))};
}

// Where the k-th largest of n numbers is, if they lie evenly in the bracket they are from.
template <class A>
static TopkBracket divide(const TopkBracket& from, int64_t n, int64_t k) {
  constexpr double kDeviations = 2.5, kUneven = 0.015;
  const double share = (double(k) - 0.5) / double(n), length = from.high - from.low;
  const double middle = from.high - share * length;
  const double slack = (kDeviations * std::sqrt(share * (1 - share) / double(n)) + kUneven) * length;
  TopkBracket out(sizeof(A) == 8);
  out.low = std::max(from.low, double(static_cast<A>(middle - slack)));
  out.high = std::min(from.high, double(static_cast<A>(middle + slack)));
  return out;
}

// The numbers are those of a bracket.
template <class A>
SPARSE_ACCEL_ONCE TopkRank select_in(const TopkBracket& within, const A* numbers, int64_t n, int64_t k, A* scratch) {
  A* const halves[2] = {scratch, scratch + n + kTopkWord};
  A* const rest = scratch + 2 * (n + kTopkWord);
  TopkBracket bracket = within;
  bool divides = true;
  for (int turn = 0; n > kTopkWord; turn ^= 1) {
    const Scores<A, false> scores({numbers, false, nullptr, 0}, 0);
    divides = divides && std::isfinite(bracket.low) && std::isfinite(bracket.high);
    bracket = divides ? divide<A>(bracket, n, k) : draw_bracket(numbers, n, k, rest);
    TopkCounts counts = classify_scores<false>(scores, n, bracket, halves[turn], nullptr, nullptr);
    if (divides && bracket.missed(counts, k)) {
      bracket = draw_bracket(numbers, n, k, rest);
      counts = classify_scores<false>(scores, n, bracket, halves[turn], nullptr, nullptr);
    }
    while (bracket.missed(counts, k)) {
      counts = classify_scores<false>(scores, n, bracket, halves[turn], nullptr, nullptr);
    }
    k -= counts.above;
    if (bracket.low == bracket.high) return {bracket.high, k, counts.inside};
    const bool shrinks = counts.inside < n;
    if (!shrinks && !divides) return select_sorting(halves[turn], n, k);
    divides = shrinks;
    numbers = halves[turn];
    n = counts.inside;
  }
  RankedWord<A> word(n);
  for (int64_t i = 0; i < n; ++i) word[i] = numbers[i];
  word.rank();
  return word.find(k);
}

template <class A>
static TopkRank select(const void* numbers, int64_t n, int64_t k, void* scratch) {
  return select_in(TopkBracket(sizeof(A) == 8), static_cast<const A*>(numbers), n, k, static_cast<A*>(scratch));
}

template <class A>
static void settle(uint64_t* bits, const uint64_t* bits_inside, int64_t words, const void* numbers_, double threshold_,
                   int64_t ties) {
  const A* numbers = static_cast<const A*>(numbers_);
  const Vec<A> threshold(static_cast<A>(threshold_));
  for (int64_t w = 0; w < words; ++w) {
    const uint64_t inside = bits_inside[w];
    if (!inside) continue;
    uint64_t above = 0, equal = numbers ? 0 : inside;
    for (int64_t j = 0; numbers && j < kTopkWord; j += kLanes<A>) {
      const uint64_t own = (inside >> j) & ((uint64_t(1) << kLanes<A>)-1);
      const Vec<A> v = expand(numbers, own);
      above |= (compare<Order::greater>(v, threshold) & own) << j;
      equal |= (compare<Order::equal>(v, threshold) & own) << j;
      numbers += count_bits(own);
    }
    if (ties == kAllTies) {
      above |= equal;
    } else {  // the lowest indices
      for (; equal && ties > 0; --ties, equal &= equal - 1) above |= equal & -equal;
    }
    bits[w] |= above;
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
