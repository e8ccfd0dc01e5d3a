// The k largest of each group, where groups lie apart in memory. Included once per instruction set (no include guard on
// purpose).
//
// Memory is read once, row by row. A byte is kept of each number: which of 256 steps it has reached, around a number
// where a sample of its group suggests the k-th largest. So many bytes stay in the caches, where they are counted
// against pivots, a column to a lane: what has passed the step of the k-th largest is in, and numbers on that very step
// are looked at again, unless they are all equal. A larger number has no smaller byte, so the result is exact for any
// sample.

#include <limits>
#include <vector>

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

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
        middle_(static_cast<size_t>(blocks_ * kTopkWord)),
        per_unit_(middle_.size()),
        pivot_(middle_.size()),
        count_(middle_.size()) {}

  // Whether there was NaN.
  bool choose(int64_t k, uint64_t* out) {
    if (!draw(k) || !encode()) return true;
    search(k);
    write(out);
    return false;
  }

 private:
  // Of its elements, `reached` have the step's byte or a larger one, and `passed` a larger one.
  struct Group {
    int64_t reached, passed;
    int step;
    int64_t left;  // of those on the step, to be in

    bool all_in() const { return reached == passed + left; }
    bool ties() const { return !all_in() && step == kMiddleStep; }
    bool mixed() const { return !all_in() && step != kMiddleStep; }
  };
  static constexpr int64_t kAhead = 16;         // rows
  static constexpr int64_t kMostCounted = 255;  // rows, of which a byte can count
  static constexpr double kDeviations = 3;

  // Scores of a row of memory, from the stripe's first column on.
  Scores<T, kind> scores(int64_t row) const { return {source_, stripe_.begin + row * stripe_.row, stripe_.column, 0}; }
  uint8_t* codes(int64_t block, int64_t row) const {
    return codes_ + block * topk_stripe_block(stripe_.rows) + row * kTopkWord;
  }

  // A number as it lies in memory, or beyond.
  const T* raw(int64_t row, int64_t column) const {
    return static_cast<const T*>(source_.data) + stripe_.begin + row * stripe_.row + column;
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
    uint64_t nan = 0;
    for (int64_t g = 0; g < stripe_.groups; g += kLanes<A>) {
      Vec<A> v[kTopkWord];
      for (int64_t i = 0; i < kTopkWord; ++i) {
        v[i] = i < size ? Vec<A>::loadu(numbers.data() + i * width + g) : Vec<A>(kLeast<A>);
        nan |= compare<Order::unordered>(v[i], v[i]);
      }
      sort_word(v, size);
      for (int64_t i = 0; i < size; ++i) v[i].store(numbers.data() + i * width + g);
    }
    const int64_t first = std::max<int64_t>(high, 1) - 1, last = std::min(low, size) - 1;
    std::vector<Steps<A>> steps;
    for (int64_t g = 0; g < stripe_.groups; ++g) {
      const A* const sorted = numbers.data() + g;
      const int64_t middle = likely_rank(sorted, width, first, std::min(k * size / n, last), last);
      steps.emplace_back(sorted[last * width], sorted[middle * width], sorted[first * width]);
    }
    for_columns(middle_, [&](const Group&, int64_t g) { return steps[static_cast<size_t>(g)].middle; });
    for_columns(per_unit_, [&](const Group&, int64_t g) { return steps[static_cast<size_t>(g)].per_unit; });
    return nan == 0;
  }

  // Where the k-th largest is likely, of a sorted sample: in the middle, but that many equal numbers are more likely.
  static int64_t likely_rank(const A* sorted, int64_t step, int64_t first, int64_t middle, int64_t last) {
    int64_t best = middle, most = 1, run = 1;
    for (int64_t i = first + 1; i <= last; ++i) {
      run = sorted[i * step] == sorted[(i - 1) * step] ? run + 1 : 1;
      if (run > 1 && sorted[i * step] == sorted[middle * step]) return middle;
      if (run > most) best = i, most = run;
    }
    return best;
  }

  // The bytes of all numbers. False if there is NaN.
  bool encode() const {
    uint64_t nan = 0;
    for (int64_t row = 0; row < stripe_.rows; ++row) {
      const Scores<T, kind> own = scores(row);
      const int64_t left = stripe_.end - (stripe_.begin + row * stripe_.row);
      for (int64_t b = 0; b < blocks_; ++b) {
        const int64_t first = b * kTopkWord;
        for (int64_t at = 0; at < kTopkWord * int64_t(sizeof(T)); at += 64) {
          __builtin_prefetch(reinterpret_cast<const char*>(raw(row + kAhead, first)) + at, 0, 2);
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
    store_steps(out, v, Vec<A>::loadu(middle_.data() + column), Vec<A>::loadu(per_unit_.data() + column));
    return compare<Order::unordered>(v, v);
  }

  // The step that the k-th largest of each group has reached, one of its digits after another.
  void search(int64_t k) {
    for (Group& group : groups_) group = {stripe_.n(), 0, 0, 0};
    for (int digit = 128; digit; digit /= 2) {
      for_columns(pivot_, [&](const Group& group, int64_t) { return static_cast<uint8_t>(group.step | digit); });
      count(0, stripe_.rows,
            [](const Bytes& own, const Bytes& pivot) { return reinterpret_cast<Bytes>(own >= pivot); });
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
    for (Group& group : groups_) group.left = k - group.passed;
  }

  // How many bytes of each column match the pivots, in some rows.
  template <class Match>
  void count(int64_t begin, int64_t end, const Match& match) {
    for (int64_t b = 0; b < blocks_; ++b) {
      int64_t* const out = count_.data() + b * kTopkWord;
      std::fill_n(out, kTopkWord, 0);
      const Bytes pivot = load_bytes(pivot_.data() + b * kTopkWord);
      for (int64_t row = begin; row < end; row += kMostCounted) {
        const uint8_t* p = codes(b, row);
        Bytes number = {};
        for (int64_t r = std::min(kMostCounted, end - row); r > 0; --r, p += kTopkWord)
          number -= match(load_bytes(p), pivot);
        for (int64_t i = 0; i < kTopkWord; ++i) out[i] += number[i];
      }
    }
  }

  // A bit for each column of the groups that satisfy.
  template <class Satisfies>
  std::vector<uint64_t> column_bits(const Satisfies& satisfies) const {
    std::vector<uint64_t> out(static_cast<size_t>(blocks_));
    for (int64_t c = 0; c < stripe_.columns(); ++c) {
      const bool bit = satisfies(groups_[static_cast<size_t>(c / stripe_.inner)]);
      out[static_cast<size_t>(c / kTopkWord)] |= uint64_t(bit) << (c % kTopkWord);
    }
    return out;
  }

  // Bits of what has passed its group's step, and of as many as belong to the k largest on it.
  void write(uint64_t* out) {
    for_columns(pivot_, [](const Group& group, int64_t) { return static_cast<uint8_t>(group.step); });
    const std::vector<uint64_t> mixed = column_bits([](const Group& group) { return group.mixed(); });
    const bool has_ties = std::any_of(groups_.begin(), groups_.end(), [](const Group& group) { return group.ties(); });
    std::vector<uint64_t> all = column_bits([](const Group& group) { return group.all_in(); }), first(mixed.size());
    Leftover left(*this);
    for (int64_t begin = 0; begin < stripe_.rows; begin += kMostCounted) {
      const int64_t end = std::min(begin + kMostCounted, stripe_.rows);
      if (has_ties) share_ties(begin, end, all, first);
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t b = 0; b < blocks_; ++b) {
          const auto block = static_cast<size_t>(b);
          const uint8_t *const own = codes(b, row), *const pivot = pivot_.data() + b * kTopkWord;
          const uint64_t equal = equal_bytes(own, pivot);
          uint64_t bits = greater_bytes(own, pivot) | (equal & all[block]);
          for (uint64_t some = equal & first[block]; some; some &= some - 1) {
            Group& group = groups_[static_cast<size_t>((b * kTopkWord + __builtin_ctzll(some)) / stripe_.inner)];
            if (group.left-- > 0) bits |= some & -some;
          }
          for (uint64_t some = equal & mixed[block]; some; some &= some - 1) {
            left.add(row, b * kTopkWord + __builtin_ctzll(some));
          }
          out[row * stripe_.words + b] = bits;
        }
      }
    }
    left.settle(out);
  }

  // Of groups with ties, those of which all in these rows are in, and those of which the first ones are.
  void share_ties(int64_t begin, int64_t end, std::vector<uint64_t>& all, std::vector<uint64_t>& first) {
    count(begin, end, [](const Bytes& own, const Bytes& pivot) { return reinterpret_cast<Bytes>(own == pivot); });
    std::vector<int64_t> number(groups_.size());
    for (int64_t c = 0; c < stripe_.columns(); ++c)
      number[static_cast<size_t>(c / stripe_.inner)] += count_[static_cast<size_t>(c)];
    const auto fits = [&](const Group& group) {
      return group.left >= number[static_cast<size_t>(&group - groups_.data())];
    };
    all = column_bits([&](const Group& group) { return group.all_in() || (group.ties() && fits(group)); });
    first = column_bits([&](const Group& group) { return group.ties() && !fits(group) && group.left > 0; });
    for (Group& group : groups_) {
      if (group.ties() && fits(group)) group.left -= number[static_cast<size_t>(&group - groups_.data())];
    }
  }

  // Places of numbers on the step of their group, in the order of memory.
  class Leftover {
   public:
    explicit Leftover(const Stripe& stripe) : stripe_(stripe) {
      int64_t total = 0;
      for (const Group& group : stripe.groups_) {
        begin_.push_back(total);
        if (group.mixed()) total += group.reached - group.passed;
      }
      end_ = begin_;
      places_.resize(static_cast<size_t>(total));
    }

    void add(int64_t row, int64_t column) {
      places_[static_cast<size_t>(end_[static_cast<size_t>(column / stripe_.stripe_.inner)]++)] = {row, column};
      __builtin_prefetch(stripe_.raw(row, column));
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
        const TopkRank rank = select<A>(numbers.data(), int64_t(n), stripe_.groups_[g].left, scratch.data());
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
    std::vector<int64_t> begin_, end_;  // of each group
    std::vector<Place> places_;
  };

  const TopkSource& source_;
  const TopkStripe& stripe_;
  const int64_t blocks_;  // of 64 columns
  uint8_t* const codes_;  // [block][row][column]
  std::vector<Group> groups_;
  std::vector<A> middle_, per_unit_;  // of each column
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
