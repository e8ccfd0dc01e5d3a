// The n largest of every m neighbours. Included once per instruction set (no include guard on purpose).
//
// An element's rank in its block is how many of the block come before it: those that are larger, and those equal with a
// lower index. Each two elements of a block are compared once.

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

constexpr int64_t kBlockWords = 32;  // that are looked at together, at most; also the largest m

template <class A>
class Blocks {
 public:
  Blocks() = default;
  Blocks(const Blocks&) = delete;
  virtual ~Blocks() = default;

  virtual int64_t words() const = 0;  // how many words to choose from at a time: whole blocks
  // Bits of the n largest in each block of words() words; 64 numbers more may be read.
  virtual void choose(const A* numbers, int n, uint64_t* out) = 0;
};

// m a power of two. As many blocks as a vector has lanes are turned, so that a lane is a block and a vector one element
// of each; ranks are counted in lanes, too.
template <class A, int m>
class PowerBlocks final : public Blocks<A> {
 public:
  int64_t words() const override { return m; }

  void choose(const A* numbers, int n, uint64_t* out) override {
    uint64_t kept[m] = {};  // of each element, a bit for each block
    for (int64_t b = 0; b < kTopkWord; b += kLanes<A>) {
      Vec<A> v[m];
      for (int i = 0; i < m; ++i) v[i] = Vec<A>::loadu(numbers + b * m + i * kLanes<A>);
      turn<m>(v);
      Tally<A> rank[m];
      for (int i = 0; i < m; ++i) rank[i] = Tally<A>(i);
#pragma GCC unroll 32
      for (int i = 0; i < m; ++i) {
#pragma GCC unroll 32
        for (int j = i + 1; j < m; ++j) Tally<A>::order(rank[i], rank[j], v[i], v[j]);
      }
      for (int i = 0; i < m; ++i) kept[i] |= rank[i].less_than(n) << b;
    }
    constexpr uint64_t first = ~uint64_t(0) / ((uint64_t(1) << m) - 1);  // the bits of element 0
    for (int64_t w = 0; w < m; ++w) {
      out[w] = 0;
      for (int64_t i = 0; i < m; ++i) out[w] |= deposit_bits(kept[i] >> (w * kTopkWord / m), first << i);
    }
  }

 private:
  // Vectors one after another in memory, from [block][element] to [element][block].
  template <int size>
  static void turn(Vec<A>* v) {
    if constexpr (size > 1) {
      Vec<A> even[size / 2], odd[size / 2];
      for (int i = 0; i < size / 2; ++i) std::tie(even[i], odd[i]) = at::vec::deinterleave2(v[2 * i], v[2 * i + 1]);
      turn<size / 2>(even);
      turn<size / 2>(odd);
      for (int i = 0; i < size / 2; ++i) v[2 * i] = even[i], v[2 * i + 1] = odd[i];
    }
  }
};

// Any m. Elements are compared with those r behind, a word at a time; integers of a few bits per element, one bit of
// all elements in a word, count.
template <class A>
class AnyBlocks final : public Blocks<A> {
 public:
  explicit AnyBlocks(int m) : m_(m), words_(kBlockWords / m * m) {
    while ((1 << digits_) < m) ++digits_;
    Words last = {};  // elements that lie in the block's last r
    for (int64_t r = 1; r < m; ++r) {
      for (int64_t i = m - r; i < words_ * kTopkWord; i += m) last[i / kTopkWord] |= uint64_t(1) << (i % kTopkWord);
      for (int64_t w = 0; w < words_; ++w) within_[r][w] = ~last[w];
    }
  }

  int64_t words() const override { return words_; }

  void choose(const A* numbers, int n, uint64_t* out) override {
    for (int64_t w = 0; w < words_; ++w) compare_word(numbers + w * kTopkWord, w);
    for (int d = 0; d < digits_; ++d) {
      for (int64_t w = 0; w < kBlockWords; ++w) digit_[d][w] = 0;
    }
    for (int64_t r = 1; r < m_; ++r) {
      Words before, after;
      uint64_t first[kBlockWords + 1] = {};  // of two elements, the first comes before the other
#pragma omp simd
      for (int64_t w = 0; w < kBlockWords; ++w) {
        before[w] = smaller_[r][w] & within_[r][w];
        first[w + 1] = ~smaller_[r][w] & within_[r][w];
      }
#pragma omp simd
      for (int64_t w = 0; w < kBlockWords; ++w) after[w] = first[w + 1] << r | first[w] >> (kTopkWord - r);
      count(before);
      count(after);
    }
    less_than(n, out);
  }

 private:
  using Words = uint64_t[kBlockWords];

  void compare_word(const A* numbers, int64_t w) {
    for (int64_t r = 1; r < m_; ++r) {
      uint64_t bits = 0;
      for (int64_t j = 0; j < kTopkWord; j += kLanes<A>) {
        const A* const p = numbers + j;
        bits |= compare<Order::greater>(Vec<A>::loadu(p + r), Vec<A>::loadu(p)) << j;
      }
      smaller_[r][w] = bits;
    }
  }

  void count(Words& carry) {
    for (int d = 0; d < digits_; ++d) {
#pragma omp simd
      for (int64_t w = 0; w < kBlockWords; ++w) {
        const uint64_t old = digit_[d][w];
        digit_[d][w] = old ^ carry[w];
        carry[w] &= old;
      }
    }
  }

  void less_than(int n, uint64_t* out) const {
    for (int64_t w = 0; w < words_; ++w) {
      uint64_t less = 0, equal = ~uint64_t(0);
      for (int d = digits_ - 1; d >= 0; --d) {  // from the highest digit down
        const uint64_t bit = (n >> d) & 1 ? ~uint64_t(0) : 0;
        less |= equal & bit & ~digit_[d][w];
        equal &= ~(bit ^ digit_[d][w]);
      }
      out[w] = less;
    }
  }

  int64_t m_, words_;
  int digits_ = 0;
  alignas(64) Words within_[kBlockWords] = {};   // [r]: elements with another of their block r behind
  alignas(64) Words smaller_[kBlockWords] = {};  // [r]: elements that are smaller than the one r behind
  alignas(64) Words digit_[5] = {};
};

template <class A>
static std::unique_ptr<Blocks<A>> blocks_of(int m) {
  if (m == 2) return std::make_unique<PowerBlocks<A, 2>>();
  if (m == 4) return std::make_unique<PowerBlocks<A, 4>>();
  if (m == 8) return std::make_unique<PowerBlocks<A, 8>>();
  if (m == 16) return std::make_unique<PowerBlocks<A, 16>>();
  return std::make_unique<AnyBlocks<A>>(m);
}

template <class T, TopkKind kind>
static bool choose_blocks(const TopkSource& source, int64_t begin, int64_t rows, int64_t columns, int n, int m,
                          uint64_t* bits) {
  using A = Acc<T>;
  constexpr A kLeast = -A(__builtin_inf());
  const std::unique_ptr<Blocks<A>> blocks = blocks_of<A>(m);
  const int64_t room = blocks->words();
  alignas(64) A numbers[(kBlockWords + 1) * kTopkWord];
  uint64_t chosen[kBlockWords], nan = 0;
  const auto store = [&](const auto& word, int64_t i, uint64_t) {
    const Numbers<A> own(word);
    nan |= own.nan();
    for (int64_t j = 0; j < own.kParts; ++j) own.part[j].store(numbers + i + j * kLanes<A>);
  };
  for (int64_t i = room * kTopkWord; i < (room + 1) * kTopkWord; ++i) numbers[i] = kLeast;
  for (int64_t r = 0; r < rows; ++r, begin += columns) {
    for (int64_t done = 0; done < columns;) {
      const int64_t own = std::min(room * kTopkWord, columns - done), words = topk_words(own);
      for_words(Scores<T, kind>(source, begin + done), own, store, kLeast);
      for (int64_t i = words * kTopkWord; i < room * kTopkWord; ++i) numbers[i] = kLeast;
      blocks->choose(numbers, n, chosen);
      for (int64_t w = 0; w < words; ++w) *bits++ = chosen[w];
      done += own;
    }
  }
  return nan != 0;
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
