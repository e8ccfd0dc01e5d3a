// The n largest of every m neighbours. Included once per instruction set (no include guard on purpose).
//
// 64 blocks are looked at together, turned so that a lane is a block and a vector one element of each. What is chosen
// comes as bits in lanes or as a vector's, and is turned back.

#include <algorithm>
#include <memory>

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

// Blocks of `bytes` that are needed soon: fetched now and then, as a processor waits for only some lines at a time.
class Ahead {
 public:
  Ahead(const void* begin, int64_t bytes) : at_(static_cast<const char*>(begin)), bytes_(bytes) {}
  void fetch(int64_t blocks) {
    const char* const end = at_ + blocks * bytes_;
    for (; at_ < end; at_ += 64) __builtin_prefetch(at_);
  }

 private:
  const char* at_;
  int64_t bytes_;
};

template <class A>
class Blocks {
 public:
  Blocks() = default;
  Blocks(const Blocks&) = delete;
  virtual ~Blocks() = default;

  // Bits of the n largest in each of up to 64 blocks of m; vectors beyond the last one may be read, and m words
  // written.
  virtual void choose(const A* numbers, int64_t blocks, Ahead& ahead, uint64_t* out) = 0;
};

// m = 2, 4 or 8. An element's rank in its block is how many of the block come before it: those that are larger, and
// those equal with a lower index. Each two elements of a block are compared once, ranks are counted in lanes.
template <class A, int m>
class RankedBlocks final : public Blocks<A> {
 public:
  explicit RankedBlocks(int n) : n_(n) {}

  void choose(const A* numbers, int64_t blocks, Ahead& ahead, uint64_t* out) override {
    uint64_t kept[m] = {};
    for (int64_t b = 0; b < blocks; b += kLanes<A>) {
      ahead.fetch(kLanes<A>);
      Vec<A> v[m];
      for (int i = 0; i < m; ++i) v[i] = Vec<A>::loadu(numbers + b * m + i * kLanes<A>);
      turn<m>(v);
      Tally<A> rank[m];
      for (int i = 0; i < m; ++i) rank[i] = Tally<A>(i);
#pragma GCC unroll 8
      for (int i = 0; i < m; ++i) {
#pragma GCC unroll 8
        for (int j = i + 1; j < m; ++j) Tally<A>::order(rank[i], rank[j], v[i], v[j]);
      }
      for (int i = 0; i < m; ++i) kept[i] |= rank[i].less_than(n_) << b;
    }
    constexpr uint64_t first = repeat_bits(1, m);  // the bits of element 0
    for (int64_t w = 0; w < m; ++w) {
      out[w] = 0;
      for (int64_t i = 0; i < m; ++i) out[w] |= deposit_bits(kept[i] >> (w * kTopkWord / m), first << i);
    }
  }

 private:
  int n_;
};

// Any m up to `power`, of 4, 8, 16 and 32. The n-th largest of each block is found among its sorted halves.
template <class A, int power>
class NetworkBlocks final : public Blocks<A> {
 public:
  NetworkBlocks(int n, int m) : n_(n), m_(m), rest_((m + 3) / 4 * 4 - kHalf) {}

  void choose(const A* numbers, int64_t blocks, Ahead& ahead, uint64_t* out) override {
    blocks = (blocks + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
    for (int64_t b = 0; b < blocks; b += kLanes<A>) {
      ahead.fetch(kLanes<A> / 4);
      Vec<A>* const v = turned_[b / kLanes<A>];
      load(numbers + b * m_, v);
      for (int i = m_; i < kHalf + rest_; ++i) v[i] = Vec<A>(kLeast<A>);
      ahead.fetch(kLanes<A> / 4);
      last_[b / kLanes<A>] = select(v, ahead);
    }
    uint32_t kept[kTopkWord] = {};
    compare_with_last<Order::greater_or_equal>(blocks, kept);
    int64_t number = 0;
    for (int64_t b = 0; b < blocks; ++b) number += count_bits(kept[b]);
    if (number > n_ * blocks) leave_ties(blocks, kept);
    join_bits(kept, blocks, m_, out);
  }

 private:
  static constexpr int kHalf = power / 2;

  // As many elements to a block as there is room for, of a vector's worth of blocks.
  void load(const A* numbers, Vec<A>* out) const {
    Vec<A> v[power];
    if constexpr (power < kLanes<A>) {
      constexpr int each = kLanes<A> / power;
      const uint64_t places = repeat_bits((uint64_t(1) << m_) - 1, power);
      for (int i = 0; i < power; ++i) v[i] = expand(numbers + i * each * m_, places & ((uint64_t(1) << kLanes<A>)-1));
    } else {
      constexpr int parts = power / kLanes<A>;
#pragma GCC unroll 32
      for (int i = 0; i < power; ++i) v[i] = Vec<A>::loadu(numbers + i / parts * m_ + i % parts * kLanes<A>);
    }
    turn<power>(v);
#pragma GCC unroll 32
    for (int i = 0; i < power; ++i) out[i] = v[i];
  }

  // The n-th largest of each lane.
  Vec<A> select(const Vec<A>* v, Ahead& ahead) const {
    Vec<A> first[kHalf], second[kHalf];
    sort_to<kHalf>(v, first);
    ahead.fetch(kLanes<A> / 4);
    sort_rest(v + kHalf, second);
    ahead.fetch(kLanes<A> / 4);
    // Of n numbers i are from the first half: the largest choice of the smaller of both ends.
    Vec<A> best(kLeast<A>);
    if (n_ <= kHalf) best = first[n_ - 1];
    if (n_ <= rest_) best = at::vec::clamp_min(best, second[n_ - 1]);
    for (int i = std::max(1, n_ - rest_); i <= std::min(n_ - 1, kHalf); ++i) {
      best = at::vec::clamp_min(best, at::vec::clamp_max(first[i - 1], second[n_ - i - 1]));
    }
    return best;
  }

  void sort_rest(const Vec<A>* v, Vec<A>* out) const {
    if (power < 16 || rest_ == kHalf) return sort_to<kHalf>(v, out);
    if (rest_ == 4) return sort_to<4>(v, out);
    if (rest_ == 8) return sort_to<8>(v, out);
    sort_to<12>(v, out);
  }

  // The bits of each block.
  template <Order order>
  void compare_with_last(int64_t blocks, uint32_t* out) const {
    for (int64_t b = 0; b < blocks; b += kLanes<A>) {
      LaneBits<A> bits;
      for (int i = 0; i < m_; ++i) bits.template add<order>(turned_[b / kLanes<A>][i], last_[b / kLanes<A>]);
      bits.store(out + b);
    }
  }

  // Of those that equal the n-th largest, the first ones stay.
  void leave_ties(int64_t blocks, uint32_t* kept) const {
    uint32_t equal[kTopkWord];
    compare_with_last<Order::equal>(blocks, equal);
    for (int64_t b = 0; b < blocks; ++b) {
      const uint64_t greater = kept[b] & ~equal[b];
      const uint64_t first = (uint64_t(1) << (n_ - count_bits(greater))) - 1;
      kept[b] = static_cast<uint32_t>(greater | deposit_bits(first, equal[b]));
    }
  }

  int n_, m_, rest_;  // of the second half, so many are there
  Vec<A> turned_[kTopkWord / kLanes<A>][power], last_[kTopkWord / kLanes<A>];
};

template <class A>
SPARSE_ACCEL_ONCE std::unique_ptr<Blocks<A>> blocks_of(int n, int m) {
  if (m == 2) return std::make_unique<RankedBlocks<A, 2>>(n);
  if (m == 4) return std::make_unique<RankedBlocks<A, 4>>(n);
  if (m == 8) return std::make_unique<RankedBlocks<A, 8>>(n);
  if (m < 4) return std::make_unique<NetworkBlocks<A, 4>>(n, m);
  if (m < 8) return std::make_unique<NetworkBlocks<A, 8>>(n, m);
  if (m <= 16) return std::make_unique<NetworkBlocks<A, 16>>(n, m);
  return std::make_unique<NetworkBlocks<A, 32>>(n, m);
}

template <class T, bool scaled>
static bool choose_blocks(const TopkSource& source, int64_t begin, int64_t rows, int64_t columns, int n, int m,
                          uint64_t* bits) {
  using A = Acc<T>;
  const std::unique_ptr<Blocks<A>> blocks = blocks_of<A>(n, m);
  alignas(64) A numbers[(kTopkMostBlock + 1) * kTopkWord] = {};
  uint64_t chosen[kTopkMostBlock], nan = 0;
  const T* const data = static_cast<const T*>(source.data);
  const auto store = [&](const auto& word, int64_t i, uint64_t) {
    const Numbers<A> own(word);
    nan |= own.nan();
    for (int64_t j = 0; j < own.kParts; ++j) own.part[j].store(numbers + i + j * kLanes<A>);
  };
  for (int64_t r = 0; r < rows; ++r, begin += columns) {
    for (int64_t done = 0; done < columns;) {
      const int64_t own = std::min(m * kTopkWord, columns - done), words = topk_words(own);
      for_words(Scores<T, scaled>(source, begin + done, 0), own, store);
      for (int64_t i = own; i < words * kTopkWord + m; ++i) numbers[i] = kLeast<A>;
      Ahead ahead(data + begin + done + own, m * int64_t(sizeof(T)));
      blocks->choose(numbers, (own + m - 1) / m, ahead, chosen);
      for (int64_t w = 0; w < words; ++w) *bits++ = chosen[w];
      done += own;
    }
  }
  return nan != 0;
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
