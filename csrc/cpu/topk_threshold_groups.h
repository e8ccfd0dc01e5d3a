// The k largest of each group, where groups lie apart in memory. Included once per instruction set (no include guard on
// purpose).
//
// Memory is read once, row by row. A byte is kept of each number: which of 256 steps between two numbers of a sample of
// its group it has reached. So many bytes stay in the caches, where they are counted against pivots, a column to a
// lane: what has passed the step of the k-th largest is in, and only numbers on that very step are looked at again. A
// larger number has no smaller byte, so the result is exact for any sample.

#include <limits>
#include <vector>

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

// Which byte a number becomes: rising with it, from 0 up to 255. NaN has no meaning.
template <class A>
struct Steps {
  A low = 0, per_unit = 0;

  // One step up to `low`, and the last one from about `high` on.
  Steps(const std::vector<A>& first, const std::vector<A>& last, int64_t group) {
    constexpr A kMost = std::numeric_limits<A>::max() / 4, kSteepest = A(1e30);
    low = std::clamp(first[static_cast<size_t>(group)], -kMost, kMost);
    const A length = std::clamp(last[static_cast<size_t>(group)], -kMost, kMost) - low;
    per_unit = std::min(A(253) / std::max(length, std::numeric_limits<A>::min()), kSteepest);
  }
};

template <class T, TopkKind kind>
class Stripe {
 public:
  using A = Acc<T>;

  Stripe(const TopkSource& source, const TopkStripe& stripe, void* scratch)
      : source_(source),
        stripe_(stripe),
        blocks_(topk_words(stripe.columns())),
        codes_(static_cast<uint8_t*>(scratch)),
        groups_(static_cast<size_t>(stripe.groups)),
        low_(static_cast<size_t>(blocks_ * kTopkWord)),
        per_unit_(low_.size()),
        pivot_(low_.size()),
        count_(low_.size()) {}

  // Whether there was NaN.
  bool choose(int64_t k, uint64_t* out) {
    if (!draw(k) || !encode()) return true;
    search(k);
    write(k, out);
    return false;
  }

 private:
  // Of its elements, `reached` have the step's byte or a larger one, and `passed` a larger one.
  struct Group {
    int64_t reached, passed;
    int step;

    bool is_open(int64_t k) const { return reached != k; }
  };
  static constexpr int64_t kAhead = 16;  // rows
  static constexpr double kDeviations = 3;

  // Scores of a row of memory, from the stripe's first column on.
  Scores<T, kind> scores(int64_t row) const { return {source_, stripe_.begin + row * stripe_.row, stripe_.column, 0}; }
  uint8_t* codes(int64_t block, int64_t row) const {
    return codes_ + block * topk_stripe_block(stripe_.rows) + row * kTopkWord;
  }

  void prefetch(int64_t row, int64_t column) const {
    __builtin_prefetch(static_cast<const T*>(source_.data) + stripe_.begin + row * stripe_.row + column);
  }

  // The value of a group for each of its columns.
  template <class V, class Value>
  void for_columns(V& of_columns, const Value& of_group) const {
    for (int64_t g = 0, c = 0; g < stripe_.groups; ++g) {
      const auto value = of_group(groups_[static_cast<size_t>(g)], g);
      for (int64_t i = 0; i < stripe_.inner; ++i) of_columns[static_cast<size_t>(c++)] = value;
    }
  }

  // Steps from a sample of each group, the same places in all of them. False if it has NaN.
  bool draw(int64_t k) {
    const int64_t n = stripe_.n(), size = std::min(n, kTopkWord), step = n / size;
    const int64_t width = (stripe_.groups + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
    std::vector<A> numbers(static_cast<size_t>(size * width));  // [number][group]
    for (int64_t i = 0; i < size; ++i) {
      const int64_t at = i * step + topk_jitter(i, step), row = at / stripe_.inner, column = at % stripe_.inner;
      const Scores<T, kind> own = scores(row);
      A* const out = numbers.data() + i * width;
      for (int64_t g = 0; g < stripe_.groups; ++g) out[g] = own.scalar(g * stripe_.inner + column);
    }
    const auto [high, low] = enclosing_ranks(size, n, k, kDeviations);
    std::vector<A> first(static_cast<size_t>(width)), last(first);
    uint64_t nan = 0;
    for (int64_t g = 0; g < stripe_.groups; g += kLanes<A>) {
      Vec<A> v[kTopkWord];
      for (int64_t i = 0; i < kTopkWord; ++i) {
        v[i] = i < size ? Vec<A>::loadu(numbers.data() + i * width + g) : Vec<A>(kLeast<A>);
        nan |= compare<Order::unordered>(v[i], v[i]);
      }
      sort_word(v);
      v[std::min(low, size) - 1].store(first.data() + g);
      v[std::max<int64_t>(high, 1) - 1].store(last.data() + g);
    }
    for_columns(low_, [&](const Group&, int64_t g) { return Steps<A>(first, last, g).low; });
    for_columns(per_unit_, [&](const Group&, int64_t g) { return Steps<A>(first, last, g).per_unit; });
    return nan == 0;
  }

  // The bytes of all numbers. False if there is NaN.
  bool encode() const {
    uint64_t nan = 0;
    for (int64_t row = 0; row < stripe_.rows; ++row) {
      const Scores<T, kind> own = scores(row);
      const T* const data = static_cast<const T*>(source_.data) + stripe_.begin + row * stripe_.row;
      const int64_t left = stripe_.end - (stripe_.begin + row * stripe_.row);
      for (int64_t b = 0; b < blocks_; ++b) {
        const int64_t first = b * kTopkWord;
        for (int64_t at = 0; at < kTopkWord * int64_t(sizeof(T)); at += 64) {
          __builtin_prefetch(reinterpret_cast<const char*>(data + kAhead * stripe_.row + first) + at, 0, 2);
        }
        uint8_t* const out = codes(b, row);
        if (first + kTopkWord <= left) {
          for (int64_t j = 0; j < kTopkWord; j += kLanes<A>)
            nan |= encode_vector(own.vector(first + j), first + j, out + j);
          continue;
        }
        A lanes[kTopkWord] = {};
        for (int64_t j = 0; j < left - first; ++j) lanes[j] = own.scalar(first + j);
        for (int64_t j = 0; j < kTopkWord; j += kLanes<A>)
          nan |= encode_vector(Vec<A>::loadu(lanes + j), first + j, out + j);
      }
    }
    return nan == 0;
  }

  // Not zero if there is NaN.
  uint64_t encode_vector(Vec<A> v, int64_t column, uint8_t* out) const {
    const Vec<A> above = v - Vec<A>::loadu(low_.data() + column);
    const Vec<A> steps = at::vec::fmadd(above, Vec<A>::loadu(per_unit_.data() + column), Vec<A>(1));
    store_bytes(out, at::vec::clamp(steps, Vec<A>(0), Vec<A>(255)).ceil());
    return compare<Order::unordered>(v, v);
  }

  // The step that the k-th largest of each group has reached, one of its digits after another.
  void search(int64_t k) {
    for (Group& group : groups_) group = {stripe_.n(), 0, 0};
    for (int digit = 128; digit; digit /= 2) {
      for_columns(pivot_, [&](const Group& group, int64_t) { return static_cast<uint8_t>(group.step | digit); });
      for (int64_t b = 0; b < blocks_; ++b) count(b);
      size_t column = 0;
      for (Group& group : groups_) {
        int64_t reached = 0;
        for (int64_t i = 0; i < stripe_.inner; ++i) reached += count_[column++];
        if (reached >= k) {
          group.step |= digit;
          group.reached = reached;
        } else {
          group.passed = reached;
        }
      }
    }
  }

  // How many of a block's bytes reach the pivots.
  void count(int64_t block) {
    constexpr int64_t kMost = 255;
    int64_t* const out = count_.data() + block * kTopkWord;
    std::fill_n(out, kTopkWord, 0);
    const Bytes pivot = load_bytes(pivot_.data() + block * kTopkWord);
    for (int64_t row = 0; row < stripe_.rows; row += kMost) {
      const uint8_t* p = codes(block, row);
      Bytes number = {};
      for (int64_t r = std::min(kMost, stripe_.rows - row); r > 0; --r, p += kTopkWord) {
        number -= reinterpret_cast<Bytes>(load_bytes(p) >= pivot);
      }
      for (int64_t i = 0; i < kTopkWord; ++i) out[i] += number[i];
    }
  }

  // Bits of what has passed its group's step, and of as many as belong to the k largest on it.
  void write(int64_t k, uint64_t* out) {
    // Where all on the step are in, they have passed the one before.
    for_columns(pivot_,
                [&](const Group& group, int64_t) { return static_cast<uint8_t>(group.step - !group.is_open(k)); });
    std::vector<uint64_t> open(static_cast<size_t>(blocks_));
    for (int64_t c = 0; c < stripe_.columns(); ++c) {
      const bool is_open = groups_[static_cast<size_t>(c / stripe_.inner)].is_open(k);
      open[static_cast<size_t>(c / kTopkWord)] |= uint64_t(is_open) << (c % kTopkWord);
    }
    Leftover left(*this, k);
    for (int64_t row = 0; row < stripe_.rows; ++row) {
      for (int64_t b = 0; b < blocks_; ++b) {
        const uint8_t *const own = codes(b, row), *const pivot = pivot_.data() + b * kTopkWord;
        out[row * stripe_.words + b] = greater_bytes(own, pivot);
        uint64_t equal = equal_bytes(own, pivot) & open[static_cast<size_t>(b)];
        for (; equal; equal &= equal - 1) left.add(row, b * kTopkWord + __builtin_ctzll(equal));
      }
    }
    left.settle(out);
  }

  // Places of numbers on the step of their group, in the order of memory.
  class Leftover {
   public:
    Leftover(const Stripe& stripe, int64_t k) : stripe_(stripe), k_(k) {
      int64_t total = 0;
      for (const Group& group : stripe.groups_) {
        begin_.push_back(total);
        if (group.is_open(k)) total += group.reached - group.passed;
      }
      end_ = begin_;
      places_.resize(static_cast<size_t>(total));
    }

    void add(int64_t row, int64_t column) {
      places_[static_cast<size_t>(end_[static_cast<size_t>(column / stripe_.stripe_.inner)]++)] = {row, column};
      stripe_.prefetch(row, column);
    }

    void settle(uint64_t* out) const {
      std::vector<A> numbers, scratch;
      for (size_t g = 0; g < begin_.size(); ++g) {
        const Place* const places = places_.data() + begin_[g];
        const auto n = static_cast<size_t>(end_[g] - begin_[g]);
        if (n == 0) continue;
        numbers.resize(std::max(numbers.size(), n + kTopkWord));
        for (size_t i = 0; i < n; ++i) numbers[i] = stripe_.scores(places[i].row).scalar(places[i].column);
        scratch.resize(std::max(scratch.size(), static_cast<size_t>(topk_scratch(int64_t(n)))));
        const int64_t left = k_ - stripe_.groups_[g].passed;
        const TopkRank rank = select<A>(numbers.data(), int64_t(n), left, scratch.data());
        const auto last = static_cast<A>(rank.value);
        int64_t ties = rank.ties();
        for (size_t i = 0; i < n; ++i) {
          if (numbers[i] < last || (numbers[i] == last && ties-- <= 0)) continue;
          const auto [row, column] = places[i];
          out[row * stripe_.stripe_.words + column / kTopkWord] |= uint64_t(1) << (column % kTopkWord);
        }
      }
    }

   private:
    struct Place {
      int64_t row, column;
    };
    const Stripe& stripe_;
    const int64_t k_;
    std::vector<int64_t> begin_, end_;  // of each group
    std::vector<Place> places_;
  };

  const TopkSource& source_;
  const TopkStripe& stripe_;
  const int64_t blocks_;  // of 64 columns
  uint8_t* const codes_;  // [block][row][column]
  std::vector<Group> groups_;
  std::vector<A> low_, per_unit_;  // of each column
  std::vector<uint8_t> pivot_;
  std::vector<int64_t> count_;
};

template <class T, TopkKind kind>
static bool choose_groups(const TopkSource& source, const TopkStripe& stripe, int64_t k, void* scratch,
                          uint64_t* bits) {
  return Stripe<T, kind>(source, stripe, scratch).choose(k, bits);
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
