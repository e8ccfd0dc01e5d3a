// Scores, a word of them after another. Included once per instruction set, after topk_threshold_lanes.h (no include
// guard on purpose).

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

// One score; the factor is read where there is one.
template <bool scaled, class T>
inline Acc<T> score_of(T number, bool magnitude, const Acc<T>* factor) {
  auto value = static_cast<Acc<T>>(number);
  if (scaled || magnitude) value = value < Acc<T>(0) ? -value : value;
  if constexpr (scaled) value = value * *factor;
  return value;
}

// What is left of a number's bits: all, or all but the sign.
template <class A>
inline Vec<A> kept_bits(bool magnitude) {
  using Bits = std::conditional_t<sizeof(A) == 8, uint64_t, uint32_t>;
  const Bits bits = ~Bits(0) >> magnitude;
  A number;
  __builtin_memcpy(&number, &bits, sizeof bits);
  return Vec<A>(number);
}

// From element `begin` of a source on; what lies `ahead` bytes ahead is fetched, as the hardware stops at page ends.
template <class T, bool scaled>
class Scores {
 public:
  using A = Acc<T>;
  Scores(const TopkSource& source, int64_t begin, int64_t ahead = kTopkAhead)
      : Scores(source, begin, scaled ? begin % source.period : 0, ahead) {}
  // `place` is the element's in its period.
  Scores(const TopkSource& source, int64_t begin, int64_t place, int64_t ahead)
      : data_(static_cast<const T*>(source.data) + begin),
        magnitude_(source.magnitude),
        kept_(kept_bits<A>(source.magnitude)),
        scale_(static_cast<const A*>(source.scale)),
        place_(place),
        period_(source.period),
        ahead_(ahead) {}

  Vec<T> vector(int64_t i) const {
    const Vec<T> v = load_vec<T>(data_ + i);
    if constexpr (scaled) return v.abs() * Vec<T>::loadu(scale_ + place_ + i);
    return v & kept_;
  }
  A scalar(int64_t i) const { return score_of<scaled>(data_[i], magnitude_, scaled ? scale_ + place_ + i : nullptr); }
  // What lies so many elements further on.
  void fetch(int64_t further) const {
    for (int64_t at = 0; at < kTopkWord * int64_t(sizeof(T)); at += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(data_ + further) + at, 0, 2);
    }
  }
  void next() {
    for (int64_t at = 0; at < kTopkWord * int64_t(sizeof(T)); at += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(data_) + ahead_ + at);
    }
    data_ += kTopkWord;
    if constexpr (scaled) {
      place_ += kTopkWord;
      if (place_ >= period_) place_ -= period_;
    }
  }

  // A word with room for what is not there.
  struct Tail {
    T numbers[kTopkWord];
    A factors[scaled ? kTopkWord : 1];
  };
  // From here on that word: `count` elements, the others like the first.
  void move_to(Tail& tail, int64_t count) {
    for (int64_t i = 0; i < kTopkWord; ++i) {
      const int64_t from = i < count ? i : 0;
      tail.numbers[i] = data_[from];
      if constexpr (scaled) tail.factors[i] = scale_[place_ + from];
    }
    data_ = tail.numbers;
    if constexpr (scaled) scale_ = tail.factors;
    place_ = 0;
  }

 private:
  const T* data_;
  bool magnitude_;
  Vec<A> kept_;
  const A* scale_;
  int64_t place_, period_, ahead_;
};

// body(word, first element of it, bits of the elements that are there). The others of the last word, which may be
// fewer, are like its first element.
template <class S, class Body>
inline void for_words(S scores, int64_t count, const Body& body) {
  typename S::Tail tail;
  for (int64_t i = 0; i < count; i += kTopkWord, scores.next()) {
    uint64_t there = ~uint64_t(0);
    if (count - i < kTopkWord) [[unlikely]] {
      there = (uint64_t(1) << (count - i)) - 1;
      scores.move_to(tail, count - i);
    }
    body(scores, i, there);
  }
}

// Bits of a word's elements for which the order holds against `other`.
template <Order order, class S, class V>
inline uint64_t word_bits(const S& word, const V& other) {
  uint64_t bits = 0;
  for (int64_t j = 0; j < kTopkWord; j += V::size()) bits |= compare<order>(word.vector(j), other) << j;
  return bits;
}

// A word's numbers, read once.
template <class A>
struct Numbers {
  static constexpr int64_t kParts = kTopkWord / kLanes<A>;
  static_assert(kParts % 2 == 0);

  template <class S>
  explicit Numbers(const S& word) {
    for (int64_t i = 0; i < kParts; ++i) part[i] = word.vector(i * kLanes<A>);
  }
  // Not zero if there is NaN: of two numbers that can be ordered, none is.
  uint64_t nan() const {
    uint64_t nan = 0;
    for (int64_t i = 0; i < kParts; i += 2) nan |= compare<Order::unordered>(part[i], part[i + 1]);
    return nan;
  }

  Vec<A> part[kParts];
};

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
