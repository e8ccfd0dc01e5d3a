// The k-th largest of many numbers. Included once per instruction set (no include guard on purpose).
//
// A sample brackets it: one pass counts the numbers above the bracket and copies those in it, where the search goes on.
// A bracket that misses, which a sample allows now and then, tells on which side to look: the result is exact for any
// input, and which numbers are drawn depends on how many there are only.

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

  void rank() {
    for (int64_t j = 0; j < n_; j += kLanes<A>) {
      const Vec<A> own = Vec<A>::loadu(numbers_ + j);
      Tally<A> above;
      for (int64_t i = 0; i < n_; ++i) above.add_greater(Vec<A>(numbers_[i]), own);
      above.store(above_ + j);
    }
  }

  TopkRank find(int64_t k) const {
    Count most = -1;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < n_; ++i) most = above_[i] < k && above_[i] > most ? above_[i] : most;
    A value = -A(__builtin_inf());
    int64_t equal = 0;
    for (int64_t i = 0; i < n_; ++i) {
      const bool found = above_[i] == most;
      value = found ? numbers_[i] : value;
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

template <class S>
static void classify_scores(const S& scores, int64_t count, double low_, double high_, typename S::A* out,
                            TopkCounts* counts) {
  using A = typename S::A;
  constexpr int64_t lanes = kLanes<A>;
  const Vec<A> low(static_cast<A>(low_)), high(static_cast<A>(high_));
  const bool copies = low_ != high_;  // equal numbers are only counted
  Tally<A> above;
  int64_t inside = 0;
  uint64_t nan = 0;
  const auto body = [&](const auto& word, int64_t, uint64_t there) {
    for (int64_t j = 0; j < kTopkWord; j += lanes) {
      const Vec<A> v = word.vector(j);
      above.add_greater(v, high);
      nan |= compare<Order::unordered>(v, v);
      const uint64_t not_below = compare<Order::greater_or_equal>(v, low) & ~compare<Order::greater>(v, high);
      const uint64_t bits = not_below & (there >> j);
      if (kHasCompress || bits) {
        if (copies) compress(out + inside, v, bits);
        inside += count_bits(bits);
      }
    }
  };
  for_words(scores, count, body, static_cast<A>(low_));
  std::conditional_t<sizeof(A) == 8, int64_t, int32_t> tally[lanes];
  above.store(tally);
  *counts = {0, inside, nan != 0};
  for (int64_t i = 0; i < lanes; ++i) counts->above += tally[i];
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

// A bracket of the k-th largest of n > 64 numbers: from 32 or 64 of them, of many more from as many as pay.
template <class A>
static void bracket(const A* numbers, int64_t n, int64_t k, A* scratch, double& low, double& high) {
  constexpr int64_t kFew = 1024, kMany = 16384;
  constexpr double kDeviations = 2;
  low = -__builtin_inf(), high = __builtin_inf();
  const int64_t size = n <= kFew ? kTopkWord / 2 : n <= kMany ? kTopkWord : topk_sample_size(n);
  const int64_t step = n / size;
  const TopkRanks ranks = topk_bracket(n, k, size, n <= kMany ? kDeviations : 2 * kDeviations);
  if (n > kMany) {
    A* const rest = scratch + size + kTopkWord;
    for (int64_t i = 0; i < size; ++i) scratch[i] = numbers[i * step + topk_jitter(i, step)];
    if (ranks.high >= 1) high = select<A>(scratch, size, ranks.high, rest).value;
    if (ranks.low <= size) low = select<A>(scratch, size, ranks.low, rest).value;
    return;
  }
  RankedWord<A> sample(size);
  for (int64_t i = 0; i < size; ++i) sample[i] = numbers[i * step + topk_jitter(i, step)];
  sample.rank();
  if (ranks.high >= 1) high = sample.find(ranks.high).value;
  if (ranks.low <= size) low = sample.find(ranks.low).value;
}

template <class A>
static TopkRank select(const void* numbers_, int64_t n, int64_t k, void* scratch_) {
  const A* numbers = static_cast<const A*>(numbers_);
  A* const scratch = static_cast<A*>(scratch_);
  A* const halves[2] = {scratch, scratch + n + kTopkWord};
  A* const rest = scratch + 2 * (n + kTopkWord);
  for (int turn = 0; n > kTopkWord; turn ^= 1) {
    double low, high;
    bracket(numbers, n, k, rest, low, high);
    A* const inside = halves[turn];
    TopkCounts counts;
    const TopkSource source{numbers, nullptr, 0};
    do {
      classify_scores(Scores<A, TopkKind::given>(source, 0), n, low, high, inside, &counts);
    } while (topk_miss(counts, k, low, high));
    k -= counts.above;
    if (low == high) return {high, k, counts.inside};
    numbers = inside;
    if (counts.inside <= n - n / 4) {
      n = counts.inside;
      continue;
    }
    // Hardly fewer: many equal the bracket's ends.
    const int64_t at_high = count_equal<A>(inside, counts.inside, high);
    const int64_t at_low = count_equal<A>(inside, counts.inside, low);
    if (k <= at_high) return {high, k, at_high};
    if (k > counts.inside - at_low) return {low, k - (counts.inside - at_low), at_low};
    k -= at_high;
    n = 0;
    for (int64_t i = 0; i < counts.inside; ++i) {
      if (inside[i] < static_cast<A>(high) && inside[i] > static_cast<A>(low)) inside[n++] = inside[i];
    }
  }
  RankedWord<A> word(n);
  for (int64_t i = 0; i < n; ++i) word[i] = numbers[i];
  word.rank();
  return word.find(k);
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
