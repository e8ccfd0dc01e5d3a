// The k-th largest of many numbers. Included once per instruction set (no include guard on purpose).
//
// A sample brackets it: one pass counts the numbers above the bracket and copies those in it, a few of a hundred, where
// the search goes on. A bracket that misses, which a sample allows now and then, tells on which side to look: the
// result is exact for any input, and which numbers are drawn depends on how many there are only.

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

// n <= 64 numbers: pivots, with the set of those still possible in a word.
template <class A>
static TopkRank select_word(const A* numbers, int64_t n, int64_t k) {
  constexpr int64_t lanes = kLanes<A>;
  A word[kTopkWord];
  for (int64_t i = 0; i < kTopkWord; ++i) word[i] = i < n ? numbers[i] : 0;
  const uint64_t there = n == kTopkWord ? ~uint64_t(0) : (uint64_t(1) << n) - 1;
  for (uint64_t possible = there;;) {
    const A pivot = word[__builtin_ctzll(possible)];
    uint64_t above = 0, not_below = 0;
    for (int64_t i = 0; i < kTopkWord; i += lanes) {
      const Vec<A> v = Vec<A>::loadu(word + i);
      above |= compare<Order::greater>(v, Vec<A>(pivot)) << i;
      not_below |= compare<Order::greater_or_equal>(v, Vec<A>(pivot)) << i;
    }
    above &= there;
    not_below &= there;
    if (k <= count_bits(above)) {
      possible &= above;
    } else if (k > count_bits(not_below)) {
      possible &= ~not_below;
    } else {
      return {double(pivot), k - count_bits(above), count_bits(not_below & ~above)};
    }
  }
}

template <class S>
static void classify_scores(const S& scores, int64_t count, double low_, double high_, typename S::A* out,
                            TopkCounts* counts) {
  using A = typename S::A;
  constexpr int64_t lanes = kLanes<A>;
  const Vec<A> low(static_cast<A>(low_)), high(static_cast<A>(high_));
  TopkCounts total{0, 0, 0, 0, false};
  uint64_t nan = 0;
  for_words(scores, count, [&](const auto& word, int64_t, uint64_t there) {
    uint64_t above = 0, not_below_high = 0, above_low = 0, not_below = 0;
    Vec<A> v[kTopkWord / lanes];
    for (int64_t j = 0; j < kTopkWord / lanes; ++j) {
      v[j] = word.vector(j * lanes);
      above |= compare<Order::greater>(v[j], high) << (j * lanes);
      not_below_high |= compare<Order::greater_or_equal>(v[j], high) << (j * lanes);
      above_low |= compare<Order::greater>(v[j], low) << (j * lanes);
      not_below |= compare<Order::greater_or_equal>(v[j], low) << (j * lanes);
      nan |= compare<Order::unordered>(v[j], v[j]) << (j * lanes);
    }
    total.above += count_bits(above & there);
    total.at_high += count_bits(not_below_high & ~above & there);
    total.at_low += count_bits(not_below & ~above_low & there);
    const uint64_t between = above_low & ~not_below_high & there;
    if (kHasCompress || between) {
      for (int64_t j = 0; j < kTopkWord / lanes; ++j) {
        const uint64_t bits = (between >> (j * lanes)) & ((uint64_t(1) << lanes) - 1);
        compress(out + total.between, v[j], bits);
        total.between += count_bits(bits);
      }
    }
  });
  // A bracket of one number: counted once.
  if (low_ == high_) total.at_low = 0;
  total.has_nan = nan != 0;
  *counts = total;
}

template <class A>
static TopkRank select(const void* numbers_, int64_t n, int64_t k, void* scratch_) {
  const A* numbers = static_cast<const A*>(numbers_);
  A* const scratch = static_cast<A*>(scratch_);
  A* const halves[2] = {scratch, scratch + n + kTopkWord};
  A* const sample = scratch + 2 * (n + kTopkWord);
  int turn = 0;
  while (n > kTopkWord) {
    const int64_t size = topk_sample_size(n);
    const int64_t step = n / size;
    for (int64_t i = 0; i < size; ++i) sample[i] = numbers[i * step + topk_jitter(i, step)];
    const TopkRanks ranks = topk_bracket(n, k, size, 2.5);
    double low = -__builtin_inf(), high = __builtin_inf();
    A* const rest = sample + size;
    if (ranks.high >= 1) {
      high =
          (size <= kTopkWord ? select_word(sample, size, ranks.high) : select<A>(sample, size, ranks.high, rest)).value;
    }
    if (ranks.low <= size) {
      low = (size <= kTopkWord ? select_word(sample, size, ranks.low) : select<A>(sample, size, ranks.low, rest)).value;
    }
    A* const out = halves[turn];
    TopkCounts counts;
    const TopkSource source{numbers, nullptr, 0};
    for (;;) {
      classify_scores(Scores<A, TopkKind::given>(source, 0), n, low, high, out, &counts);
      if (!topk_miss(counts, k, low, high)) break;
    }
    TopkRank rank{};
    if (topk_locate(counts, k, low, high, rank)) return rank;
    k = rank.wanted;
    n = counts.between;
    numbers = out;
    turn ^= 1;
  }
  return select_word(numbers, n, k);
}

template <class A>
static int64_t count_equal(const void* numbers, int64_t n, double value) {
  int64_t total = 0;
  const A* const p = static_cast<const A*>(numbers);
  for (int64_t i = 0; i < n; ++i) total += p[i] == static_cast<A>(value);
  return total;
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
