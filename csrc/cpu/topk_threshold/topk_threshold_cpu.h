// Choosing elements, and keeping the chosen. Included once per instruction set (no include guard on purpose).

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

template <class T, bool scaled>
static bool has_nan(const TopkSource& source, int64_t begin, int64_t count) {
  uint64_t nan = 0;
  for_words(Scores<T, scaled>(source, begin), count,
            [&](const auto& word, int64_t, uint64_t) { nan |= Numbers<Acc<T>>(word).nan(); });
  return nan != 0;
}

template <class T, bool scaled>
static bool sample(const TopkSource& source, int64_t size, int64_t number, void* out_) {
  using A = Acc<T>;
  const T* const data = static_cast<const T*>(source.data);
  const A* const scale = static_cast<const A*>(source.scale);
  A* const out = static_cast<A*>(out_);
  const int64_t step = size / number;
  const double per_period = scaled ? 1 / double(source.period) : 0;
  bool nan = false;
  for (int64_t i = 0; i < number; ++i) {
    const int64_t at = i * step + topk_jitter(i, step);
    int64_t place = 0;
    if constexpr (scaled) {
      place = at - static_cast<int64_t>(double(at) * per_period) * source.period;  // at % period, but for one
      place += place < 0 ? source.period : place >= source.period ? -source.period : 0;
    }
    const A value = score_of<scaled>(data[at], source.magnitude, scale + place);
    nan |= value != value;
    out[i] = value;
  }
  return nan;
}

template <class T, bool scaled>
static TopkCounts classify(const TopkSource& source, int64_t begin, int64_t count, const TopkBracket& bracket,
                           void* inside, uint64_t* bits, uint64_t* bits_inside) {
  return classify_scores<true>(Scores<T, scaled>(source, begin), count, bracket, static_cast<Acc<T>*>(inside), bits,
                               bits_inside);
}

// Bits of scores > threshold, and of the first `ties` of those equal to it.
template <class S>
static void choose_scores(const S& scores, int64_t count, double threshold_, int64_t ties, uint64_t* bits) {
  using A = typename S::A;
  const Vec<A> threshold(static_cast<A>(threshold_));
  if (ties == kAllTies) {
    for_words(scores, count, [&](const auto& word, int64_t i, uint64_t) {
      bits[i / kTopkWord] = word_bits<Order::greater_or_equal>(word, threshold);
    });
    return;
  }
  for_words(scores, count, [&](const auto& word, int64_t i, uint64_t there) {
    uint64_t chosen = word_bits<Order::greater>(word, threshold);
    if (ties > 0) {  // the lowest indices
      uint64_t equal = word_bits<Order::equal>(word, threshold) & there;
      for (; equal && ties > 0; --ties, equal &= equal - 1) chosen |= equal & -equal;
    }
    bits[i / kTopkWord] = chosen;
  });
}

// The places of a row that are drawn, and their factors: the same for all rows, which begin a period.
template <class T, bool scaled>
class RowSample {
 public:
  using A = Acc<T>;
  RowSample(const TopkSource& source, int64_t n) : size_(std::min(n, kTopkWord)), magnitude_(source.magnitude) {
    const int64_t step = n / size_;
    for (int64_t i = 0; i < size_; ++i) {
      const int64_t at = i * step + topk_jitter(i, step);
      at_[i] = static_cast<int32_t>(at);
      if constexpr (scaled) factor_[i] = static_cast<const A*>(source.scale)[at % source.period];
    }
  }

  // Whether there was NaN among them.
  bool draw(const T* row, RankedWord<A>& word) const {
    bool nan = false;
    for (int64_t i = 0; i < size_; ++i) {
      const A value = score_of<scaled>(row[at_[i]], magnitude_, factor_ + i);
      nan |= value != value;
      word[i] = value;
    }
    word.rank();
    return nan;
  }
  int64_t size() const { return size_; }

 private:
  int64_t size_;
  bool magnitude_;
  int32_t at_[kTopkWord];
  A factor_[kTopkWord];
};

template <class T, bool scaled>
static bool choose_rows(const TopkSource& source, int64_t begin, int64_t rows, int64_t n, int64_t k, void* scratch,
                        uint64_t* bits) {
  using A = Acc<T>;
  A* const inside = static_cast<A*>(scratch);
  const RowSample<T, scaled> sample(source, n);
  // While a row is read, the next one is fetched: numbers that are drawn lie all over it.
  const int64_t ahead = std::clamp<int64_t>(n * int64_t(sizeof(T)), kTopkAhead, kTopkMostAhead);
  for (int64_t r = 0; r < rows; ++r, begin += n, bits += topk_words(n)) {
    RankedWord<A> word(sample.size());
    if (sample.draw(static_cast<const T*>(source.data) + begin, word)) return true;
    TopkRank rank;
    if (n <= kTopkWord) {
      rank = word.find(k);
    } else {
      TopkBracket around = bracket(word, n, k);
      TopkCounts counts;
      do {
        counts = classify_scores<false>(Scores<T, scaled>(source, begin, ahead), n, around, inside, nullptr, nullptr);
        if (counts.has_nan) return true;
      } while (around.missed(counts, k));
      const int64_t left = k - counts.above;
      rank = around.low == around.high ? TopkRank{around.high, left, counts.inside}
                                       : select_in(around, inside, counts.inside, left, inside + n + kTopkWord);
    }
    choose_scores(Scores<T, scaled>(source, begin, ahead), n, rank.value, rank.ties(), bits);
  }
  return false;
}

template <class Word>
static void zero_words(Word* x, const bool* mask, int64_t count) {
  const auto* const flag = reinterpret_cast<const uint8_t*>(mask);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) x[i] &= static_cast<Word>(-static_cast<Word>(flag[i]));
}

static void zero_outside(const TopkTarget& target, int64_t count) {
  if (target.x_bytes == 4) {
    zero_words(static_cast<uint32_t*>(target.x), target.mask, count);
  } else if (target.x_bytes == 2) {
    zero_words(static_cast<uint16_t*>(target.x), target.mask, count);
  } else {
    zero_words(static_cast<uint64_t*>(target.x), target.mask, count);
  }
}

// x = 0 where bits are not set, for 64 elements.
template <class Word>
inline void keep_word([[maybe_unused]] uint64_t bits, Word* x, [[maybe_unused]] const bool* mask) {
#if defined(CPU_CAPABILITY_AVX512)
  for (int64_t i = 0; i < kTopkWord; i += 64 / int64_t(sizeof(Word)), bits >>= 64 / sizeof(Word) % 64) {
    if constexpr (sizeof(Word) == 2) {
      _mm512_storeu_si512(x + i, _mm512_maskz_loadu_epi16(static_cast<__mmask32>(bits), x + i));
    } else if constexpr (sizeof(Word) == 4) {
      _mm512_storeu_si512(x + i, _mm512_maskz_loadu_epi32(static_cast<__mmask16>(bits), x + i));
    } else {
      _mm512_storeu_si512(x + i, _mm512_maskz_loadu_epi64(static_cast<__mmask8>(bits), x + i));
    }
  }
#else
  zero_words(x, mask, kTopkWord);
#endif
}

template <class Word>
static void apply_words(const uint64_t* bits, int64_t count, Word* x, bool* mask, bool passes_cache) {
  int64_t i = 0;
  for (; i + kTopkWord <= count; i += kTopkWord, ++bits) {
    for (int64_t at = 0; at < kTopkWord * int64_t(sizeof(Word)); at += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(x + i) + kTopkAhead + at, 1);
    }
    spread_bits(*bits, mask + i, passes_cache);
    keep_word(*bits, x + i, mask + i);
  }
  for (int64_t j = 0; i + j < count; ++j) {
    mask[i + j] = (*bits >> j) & 1;
    if (!mask[i + j]) x[i + j] = 0;
  }
}

static void apply(const uint64_t* bits, int64_t count, const TopkTarget& target) {
  const auto& [x, x_bytes, mask, passes_cache] = target;
  if (x_bytes == 4) {
    apply_words(bits, count, static_cast<uint32_t*>(x), mask, passes_cache);
  } else if (x_bytes == 2) {
    apply_words(bits, count, static_cast<uint16_t*>(x), mask, passes_cache);
  } else {
    apply_words(bits, count, static_cast<uint64_t*>(x), mask, passes_cache);
  }
}

// [scaled][dtype], dtypes in the order of dtype_index.
#define SPARSE_ACCEL_TOPK_DTYPES(kernel, scaled) \
  {&kernel<float, scaled>, &kernel<double, scaled>, &kernel<c10::BFloat16, scaled>, &kernel<c10::Half, scaled>}
#define SPARSE_ACCEL_TOPK(kernel) {SPARSE_ACCEL_TOPK_DTYPES(kernel, false), SPARSE_ACCEL_TOPK_DTYPES(kernel, true)}

static const TopkKernels topk_table = {SPARSE_ACCEL_TOPK(has_nan),
                                       SPARSE_ACCEL_TOPK(sample),
                                       SPARSE_ACCEL_TOPK(classify),
                                       SPARSE_ACCEL_TOPK(choose_rows),
                                       SPARSE_ACCEL_TOPK(choose_blocks),
                                       SPARSE_ACCEL_TOPK(choose_groups),
                                       {&bracket<float>, &bracket<double>},
                                       {&select<float>, &select<double>},
                                       {&count_equal<float>, &count_equal<double>},
                                       {&settle<float>, &settle<double>},
                                       &apply,
                                       &zero_outside};

#undef SPARSE_ACCEL_TOPK
#undef SPARSE_ACCEL_TOPK_DTYPES

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
