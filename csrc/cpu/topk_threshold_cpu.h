// Reading scores, and writing what is kept of them. Included once per instruction set (no include guard on purpose).

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

template <class T, TopkKind kind>
static bool read(const TopkSource& source, int64_t begin, int64_t count, void* out_) {
  using A = Acc<T>;
  A* const out = static_cast<A*>(out_);
  uint64_t nan = 0;
  for_words(Scores<T, kind>(source, begin), count, [&](const auto& word, int64_t i, uint64_t there) {
    A numbers[kTopkWord];
    A* const to = ~there == 0 ? out + i : numbers;
    for (int64_t j = 0; j < kTopkWord; j += kLanes<A>) {
      const Vec<A> v = word.vector(j);
      nan |= compare<Order::unordered>(v, v);
      v.store(to + j);
    }
    for (int64_t j = 0; ~there != 0 && j < count - i; ++j) out[i + j] = numbers[j];
  });
  return nan != 0;
}

template <class T, TopkKind kind>
static bool has_nan(const TopkSource& source, int64_t begin, int64_t count) {
  using A = Acc<T>;
  uint64_t nan = 0;
  for_words(Scores<T, kind>(source, begin), count, [&](const auto& word, int64_t, uint64_t) {
    for (int64_t j = 0; j < kTopkWord; j += kLanes<A>) {
      const Vec<A> v = word.vector(j);
      nan |= compare<Order::unordered>(v, v);
    }
  });
  return nan != 0;
}

template <class T, TopkKind kind>
static bool sample(const TopkSource& source, int64_t size, int64_t number, void* out_) {
  using A = Acc<T>;
  const T* const data = static_cast<const T*>(source.data);
  const A* const scale = static_cast<const A*>(source.scale);
  A* const out = static_cast<A*>(out_);
  const int64_t step = size / number;
  const double per_period = kind == TopkKind::scaled ? 1 / double(source.period) : 0;
  bool nan = false;
  for (int64_t i = 0; i < number; ++i) {
    const int64_t at = i * step + topk_jitter(i, step);
    A value = static_cast<A>(data[at]);
    if constexpr (kind != TopkKind::given) value = value < A(0) ? -value : value;
    if constexpr (kind == TopkKind::scaled) {
      int64_t place = at - static_cast<int64_t>(double(at) * per_period) * source.period;  // at % period, but for one
      place += place < 0 ? source.period : place >= source.period ? -source.period : 0;
      value = value * scale[place];
    }
    nan |= value != value;
    out[i] = value;
  }
  return nan;
}

template <class T, TopkKind kind>
static void classify(const TopkSource& source, int64_t begin, int64_t count, double low, double high, void* inside,
                     TopkCounts* counts) {
  classify_scores(Scores<T, kind>(source, begin), count, low, high, static_cast<Acc<T>*>(inside), counts);
}

template <class T, TopkKind kind>
static int64_t keep(const TopkSource& source, int64_t begin, int64_t count, double threshold_, int64_t ties,
                    const TopkTarget& target) {
  using A = Acc<T>;
  const Vec<A> threshold(static_cast<A>(threshold_));
  const auto bits_of = [&](const auto& word, auto order) {
    uint64_t bits = 0;
    for (int64_t j = 0; j < kTopkWord; j += kLanes<A>) {
      bits |= compare<decltype(order)::value>(word.vector(j), threshold) << j;
    }
    return bits;
  };
  using Above = std::integral_constant<Order, Order::greater>;
  using NotBelow = std::integral_constant<Order, Order::greater_or_equal>;
  const Scores<T, kind> scores(source, begin);
  if (ties == kAllTies) {
    for_words(scores, count,
              [&](const auto& word, int64_t i, uint64_t) { apply(bits_of(word, NotBelow()), target, i, count); });
    return ties;
  }
  for_words(scores, count, [&](const auto& word, int64_t i, uint64_t there) {
    uint64_t bits = bits_of(word, Above());
    if (ties > 0) {  // the lowest indices
      uint64_t equal = bits_of(word, NotBelow()) & ~bits & there;
      for (; equal && ties > 0; --ties, equal &= equal - 1) bits |= equal & -equal;
    }
    apply(bits, target, i, count);
  });
  return ties;
}

// Blocks that lie within vectors: each number against its neighbours, block by block around. An integer of a few bits
// per number, one bit of all numbers in a word, counts those that come before it.
template <class T, TopkKind kind>
static void keep_blocks_around(const TopkSource& source, int64_t begin, int64_t count, int n, int m,
                               const TopkTarget& target) {
  using A = Acc<T>;
  constexpr int64_t lanes = kLanes<A>;
  Permutation turn[lanes];
  uint64_t earlier[lanes];  // lanes whose neighbour has a lower index
  for (int r = 1; r < m; ++r) {
    int64_t from[lanes];
    earlier[r] = 0;
    for (int i = 0; i < lanes; ++i) {
      from[i] = (i & ~(m - 1)) | ((i + r) & (m - 1));
      earlier[r] |= uint64_t(from[i] < i) << i;
    }
    turn[r] = permutation(from, A());
  }
  for_words(Scores<T, kind>(source, begin), count, [&](const auto& word, int64_t i, uint64_t) {
    uint64_t digit[4] = {};
    for (int r = 1; r < m; ++r) {
      uint64_t carry = 0;
      for (int64_t j = 0; j < kTopkWord; j += lanes) {
        const Vec<A> v = word.vector(j), other = permute(v, turn[r]);
        const uint64_t before = compare<Order::greater>(other, v) | (compare<Order::equal>(other, v) & earlier[r]);
        carry |= before << j;
      }
      for (int d = 0; d < 4; ++d) {
        const uint64_t old = digit[d];
        digit[d] = old ^ carry;
        carry &= old;
      }
    }
    uint64_t less = 0, equal = ~uint64_t(0);  // rank < n, from the highest digit down
    for (int d = 3; d >= 0; --d) {
      const uint64_t bit = (n >> d) & 1 ? ~uint64_t(0) : 0;
      less |= equal & bit & ~digit[d];
      equal &= ~(bit ^ digit[d]);
    }
    apply(less, target, i, count);
  });
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

// Any block: 16 of them side by side.
template <class T, TopkKind kind>
static void keep_blocks_across(const TopkSource& source, int64_t begin, int64_t count, int n, int m,
                               const TopkTarget& target) {
  using A = Acc<T>;
  using Count = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  constexpr int64_t side = 16, most = 32;
  A tile[most * side], across[most][side];
  Count rank[most][side];
  bool* const mask = target.mask;
  for (int64_t first = 0; first < count; first += side * m) {
    const int64_t blocks = count - first < side * m ? (count - first) / m : side;
    read<T, kind>(source, begin + first, blocks * m, tile);
    for (int i = 0; i < m; ++i) {
      for (int64_t b = 0; b < side; ++b) {
        across[i][b] = b < blocks ? tile[b * m + i] : A(0);
        rank[i][b] = 0;
      }
    }
    for (int j = 1; j < m; ++j) {
      for (int i = 0; i < j; ++i) {
#pragma omp simd
        for (int64_t b = 0; b < side; ++b) {
          const Count later = across[j][b] > across[i][b];
          rank[i][b] += later;
          rank[j][b] += 1 - later;
        }
      }
    }
    for (int64_t b = 0; b < blocks; ++b) {
      for (int i = 0; i < m; ++i) mask[first + b * m + i] = rank[i][b] < n;
    }
    char* const x = static_cast<char*>(target.x) + first * target.x_bytes;
    zero_outside({x, target.x_bytes, mask + first}, blocks * m);
  }
}

template <class T, TopkKind kind>
static void keep_blocks(const TopkSource& source, int64_t begin, int64_t count, int n, int m,
                        const TopkTarget& target) {
  if constexpr (kHasPermute<Acc<T>>) {
    if (m <= kLanes<T> && (m & (m - 1)) == 0) return keep_blocks_around<T, kind>(source, begin, count, n, m, target);
  }
  keep_blocks_across<T, kind>(source, begin, count, n, m, target);
}

// [kind][dtype], dtypes in the order of dtype_index.
#define SPARSE_ACCEL_TOPK_DTYPES(kernel, kind) \
  {&kernel<float, kind>, &kernel<double, kind>, &kernel<c10::BFloat16, kind>, &kernel<c10::Half, kind>}
#define SPARSE_ACCEL_TOPK(kernel)                                                                            \
  {SPARSE_ACCEL_TOPK_DTYPES(kernel, TopkKind::given), SPARSE_ACCEL_TOPK_DTYPES(kernel, TopkKind::magnitude), \
   SPARSE_ACCEL_TOPK_DTYPES(kernel, TopkKind::scaled)}

static const TopkKernels topk_table = {SPARSE_ACCEL_TOPK(has_nan),
                                       SPARSE_ACCEL_TOPK(read),
                                       SPARSE_ACCEL_TOPK(sample),
                                       SPARSE_ACCEL_TOPK(classify),
                                       SPARSE_ACCEL_TOPK(keep),
                                       SPARSE_ACCEL_TOPK(keep_blocks),
                                       {&select<float>, &select<double>},
                                       {&count_equal<float>, &count_equal<double>},
                                       &zero_outside};

#undef SPARSE_ACCEL_TOPK
#undef SPARSE_ACCEL_TOPK_DTYPES

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
