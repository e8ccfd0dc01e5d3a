// The k largest of each group, where groups lie apart in memory. Included once per instruction set (no include guard on
// purpose).
//
// Memory is read once, row by row. A byte is kept of each number: which of 256 steps it has reached, around a number
// where a sample of its group suggests the k-th largest. So many bytes stay in the caches, where they are counted
// against pivots, a column to a lane: what has passed the step of the k-th largest is in, and numbers on that very step
// are looked at again, unless they are all equal. A larger number has no smaller byte, so the result is exact for any
// sample.

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

// Memory that begins as zeros. Not the standard library's: of a template of its the linker keeps one copy for all
// instruction sets.
template <class T>
class Array {
 public:
  explicit Array(int64_t size) : size_(size), data_(new T[static_cast<size_t>(size)]()) {}
  Array(Array&& other) noexcept : size_(other.size_), data_(other.data_) { other.data_ = nullptr; }
  Array& operator=(Array&& other) noexcept {
    std::swap(size_, other.size_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~Array() { delete[] data_; }

  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }
  int64_t size() const { return size_; }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }

 private:
  int64_t size_;
  T* data_;
};

// What a stripe reads, which alone depends on what lies in memory.
template <class A>
struct StripeReader {
  // Scores of a row of memory, from the stripe's column `first` on, each `step` columns from the last.
  void (*scores)(const TopkSource&, const TopkStripe&, int64_t row, int64_t first, int64_t step, int64_t number,
                 A* out);
  // The bytes of all numbers. False if there is NaN.
  bool (*encode)(const TopkSource&, const TopkStripe&, const A* middle, const A* per_unit, uint8_t* codes);
  int64_t size;  // of an element, in bytes
};

// Where the bytes of a row begin, of a block of 64 columns.
inline uint8_t* stripe_codes(uint8_t* codes, const TopkStripe& stripe, int64_t block, int64_t row) {
  return codes + block * topk_stripe_block(stripe.rows) + row * kTopkWord;
}

template <class A>
class Stripe {
 public:
  Stripe(const TopkSource& source, const TopkStripe& stripe, const StripeReader<A>& reader, void* scratch)
      : source_(source),
        stripe_(stripe),
        reader_(reader),
        blocks_(topk_words(stripe.columns())),
        codes_(static_cast<uint8_t*>(scratch)),
        groups_(stripe.groups),
        middle_(blocks_ * kTopkWord),
        per_unit_(middle_.size()),
        pivot_(middle_.size()),
        count_(middle_.size()) {}

  // Whether there was NaN.
  bool choose(int64_t k, uint64_t* out) {
    if (!draw(k) || !reader_.encode(source_, stripe_, middle_.data(), per_unit_.data(), codes_)) return true;
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
  static constexpr int64_t kMostCounted = 255;  // rows, of which a byte can count
  static constexpr double kDeviations = 3;

  uint8_t* codes(int64_t block, int64_t row) const { return stripe_codes(codes_, stripe_, block, row); }

  // The pivot of a group for each of its columns.
  void set_pivots(int digit) {
    for (int64_t g = 0, c = 0; g < stripe_.groups; ++g) {
      for (int64_t i = 0; i < stripe_.inner; ++i) pivot_[c++] = static_cast<uint8_t>(groups_[g].step | digit);
    }
  }

  // Steps from a sample of each group, the same places in all of them. False if it has NaN.
  bool draw(int64_t k) {
    const int64_t n = stripe_.n(), size = std::min(n, kTopkWord), step = n / size;
    const int64_t width = (stripe_.groups + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
    Array<A> numbers(size * width);  // [number][group]
    for (int64_t i = 0; i < size; ++i) {
      const int64_t at = i * step + topk_jitter(i, step), row = at / stripe_.inner, column = at % stripe_.inner;
      reader_.scores(source_, stripe_, row, column, stripe_.inner, stripe_.groups, numbers.data() + i * width);
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
    for (int64_t g = 0; g < stripe_.groups; ++g) {
      const A* const sorted = numbers.data() + g;
      const int64_t middle = likely_rank(sorted, width, first, std::min(k * size / n, last), last);
      const Steps<A> steps(sorted[last * width], sorted[middle * width], sorted[first * width]);
      for (int64_t i = g * stripe_.inner; i < (g + 1) * stripe_.inner; ++i) {
        middle_[i] = steps.middle;
        per_unit_[i] = steps.per_unit;
      }
    }
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

  // The step that the k-th largest of each group has reached, one of its digits after another.
  void search(int64_t k) {
    for (Group& group : groups_) group = {stripe_.n(), 0, 0, 0};
    for (int digit = 128; digit; digit /= 2) {
      set_pivots(digit);
      count(0, stripe_.rows,
            [](const Bytes& own, const Bytes& pivot) { return reinterpret_cast<Bytes>(own >= pivot); });
      int64_t column = 0;
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

  // How many bytes of each column match the pivots, in some rows. Inlined, its loop would have no registers left.
  template <class Match>
  __attribute__((noinline)) void count(int64_t begin, int64_t end, const Match& match) {
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
  Array<uint64_t> column_bits(const Satisfies& satisfies) const {
    Array<uint64_t> out(blocks_);
    for (int64_t c = 0; c < stripe_.columns(); ++c) {
      out[c / kTopkWord] |= uint64_t(satisfies(groups_[c / stripe_.inner])) << (c % kTopkWord);
    }
    return out;
  }

  // Bits of what has passed its group's step, and of as many as belong to the k largest on it.
  void write(uint64_t* out) {
    set_pivots(0);
    const Array<uint64_t> mixed = column_bits([](const Group& group) { return group.mixed(); });
    bool has_ties = false;
    for (const Group& group : groups_) has_ties |= group.ties();
    Array<uint64_t> all = column_bits([](const Group& group) { return group.all_in(); }), first(mixed.size());
    Leftover left(*this);
    for (int64_t begin = 0; begin < stripe_.rows; begin += kMostCounted) {
      const int64_t end = std::min(begin + kMostCounted, stripe_.rows);
      if (has_ties) share_ties(begin, end, all, first);
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t b = 0; b < blocks_; ++b) {
          const uint8_t *const own = codes(b, row), *const pivot = pivot_.data() + b * kTopkWord;
          const uint64_t equal = equal_bytes(own, pivot);
          uint64_t bits = greater_bytes(own, pivot) | (equal & all[b]);
          for (uint64_t some = equal & first[b]; some; some &= some - 1) {
            Group& group = groups_[(b * kTopkWord + __builtin_ctzll(some)) / stripe_.inner];
            if (group.left-- > 0) bits |= some & -some;
          }
          for (uint64_t some = equal & mixed[b]; some; some &= some - 1) {
            left.add(row, b * kTopkWord + __builtin_ctzll(some));
          }
          out[row * stripe_.words + b] = bits;
        }
      }
    }
    left.settle(out);
  }

  // Of groups with ties, those of which all in these rows are in, and those of which the first ones are.
  void share_ties(int64_t begin, int64_t end, Array<uint64_t>& all, Array<uint64_t>& first) {
    count(begin, end, [](const Bytes& own, const Bytes& pivot) { return reinterpret_cast<Bytes>(own == pivot); });
    Array<int64_t> number(groups_.size());
    for (int64_t c = 0; c < stripe_.columns(); ++c) number[c / stripe_.inner] += count_[c];
    const auto fits = [&](const Group& group) { return group.left >= number[&group - groups_.data()]; };
    all = column_bits([&](const Group& group) { return group.all_in() || (group.ties() && fits(group)); });
    first = column_bits([&](const Group& group) { return group.ties() && !fits(group) && group.left > 0; });
    for (Group& group : groups_) {
      if (group.ties() && fits(group)) group.left -= number[&group - groups_.data()];
    }
  }

  // Places of numbers on the step of their group, in the order of memory.
  class Leftover {
   public:
    explicit Leftover(const Stripe& stripe)
        : stripe_(stripe), begin_(stripe.groups_.size() + 1), end_(stripe.groups_.size()), places_(number_them()) {}

    void add(int64_t row, int64_t column) {
      const TopkStripe& own = stripe_.stripe_;
      places_[end_[column / own.inner]++] = {row, column};
      const auto* const data = static_cast<const char*>(stripe_.source_.data);
      __builtin_prefetch(data + (own.begin + row * own.row + column) * stripe_.reader_.size);
    }

    void settle(uint64_t* out) const {
      int64_t most = 0;
      for (int64_t g = 0; g < end_.size(); ++g) most = std::max(most, end_[g] - begin_[g]);
      if (most == 0) return;
      Array<A> numbers(most + kTopkWord), scratch(topk_scratch(most));
      for (int64_t g = 0; g < end_.size(); ++g) {
        const Place* const places = places_.data() + begin_[g];
        const int64_t n = end_[g] - begin_[g];
        if (n == 0) continue;
        for (int64_t i = 0; i < n; ++i) stripe_.read(places[i].row, places[i].column, &numbers[i]);
        const TopkRank rank = select<A>(numbers.data(), n, stripe_.groups_[g].left, scratch.data());
        const auto last = static_cast<A>(rank.value);
        int64_t ties = rank.ties();
        for (int64_t i = 0; i < n; ++i) {
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

    // Where each group's begin; how many there are in all.
    int64_t number_them() {
      for (int64_t g = 0; g < end_.size(); ++g) {
        const Group& group = stripe_.groups_[g];
        end_[g] = begin_[g];
        begin_[g + 1] = begin_[g] + (group.mixed() ? group.reached - group.passed : 0);
      }
      return begin_[end_.size()];
    }

    const Stripe& stripe_;
    Array<int64_t> begin_, end_;  // of each group
    Array<Place> places_;
  };

  void read(int64_t row, int64_t column, A* out) const { reader_.scores(source_, stripe_, row, column, 0, 1, out); }

  const TopkSource& source_;
  const TopkStripe& stripe_;
  const StripeReader<A>& reader_;
  const int64_t blocks_;  // of 64 columns
  uint8_t* const codes_;  // [block][row][column]
  Array<Group> groups_;
  Array<A> middle_, per_unit_;  // of each column
  Array<uint8_t> pivot_;
  Array<int64_t> count_;
};

// Of a row of memory, from the stripe's first column on.
template <class T, bool scaled>
static Scores<T, scaled> stripe_row(const TopkSource& source, const TopkStripe& stripe, int64_t row) {
  return {source, stripe.begin + row * stripe.row, stripe.column, 0};
}

template <class T, bool scaled>
static void read_scores(const TopkSource& source, const TopkStripe& stripe, int64_t row, int64_t first, int64_t step,
                        int64_t number, Acc<T>* out) {
  const Scores<T, scaled> own = stripe_row<T, scaled>(source, stripe, row);
  for (int64_t i = 0; i < number; ++i) out[i] = own.scalar(first + i * step);
}

template <class T, bool scaled>
static bool encode(const TopkSource& source, const TopkStripe& stripe, const Acc<T>* middle, const Acc<T>* per_unit,
                   uint8_t* codes) {
  using A = Acc<T>;
  constexpr int64_t rows_ahead = 16;
  const int64_t blocks = topk_words(stripe.columns());
  uint64_t nan = 0;
  for (int64_t row = 0; row < stripe.rows; ++row) {
    const int64_t begin = stripe.begin + row * stripe.row, left = stripe.end - begin;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * kTopkWord;
      Scores<T, scaled> word(source, begin + first, stripe.column + first, 0);
      typename Scores<T, scaled>::Tail tail;
      word.fetch(rows_ahead * stripe.row);
      if (first + kTopkWord > left) [[unlikely]]
        word.move_to(tail, left - first);
      uint8_t* const out = stripe_codes(codes, stripe, b, row);
      for (int64_t j = 0; j < kTopkWord; j += kLanes<A>) {
        const Vec<A> v = word.vector(j);
        store_steps(out + j, v, Vec<A>::loadu(middle + first + j), Vec<A>::loadu(per_unit + first + j));
        nan |= compare<Order::unordered>(v, v);
      }
    }
  }
  return nan == 0;
}

template <class A>
SPARSE_ACCEL_ONCE bool choose_of_stripe(const TopkSource& source, const TopkStripe& stripe,
                                        const StripeReader<A>& reader, int64_t k, void* scratch, uint64_t* bits) {
  return Stripe<A>(source, stripe, reader, scratch).choose(k, bits);
}

template <class T, bool scaled>
static bool choose_groups(const TopkSource& source, const TopkStripe& stripe, int64_t k, void* scratch,
                          uint64_t* bits) {
  static constexpr StripeReader<Acc<T>> reader = {&read_scores<T, scaled>, &encode<T, scaled>, sizeof(T)};
  return choose_of_stripe<Acc<T>>(source, stripe, reader, k, scratch, bits);
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
