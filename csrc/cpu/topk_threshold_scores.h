// Scores, a word of them after another. Included once per instruction set, after topk_threshold_lanes.h (no include
// guard on purpose).

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

// One score; the factor is read where there is one.
template <TopkKind kind, class T>
inline Acc<T> score_of(T number, const Acc<T>* factor) {
  auto value = static_cast<Acc<T>>(number);
  if constexpr (kind != TopkKind::given) value = value < Acc<T>(0) ? -value : value;
  if constexpr (kind == TopkKind::scaled) value = value * *factor;
  return value;
}

// From element `begin` of a source on; what lies `ahead` bytes ahead is fetched, as the hardware stops at page ends.
template <class T, TopkKind kind>
class Scores {
 public:
  using A = Acc<T>;
  Scores(const TopkSource& source, int64_t begin, int64_t ahead = kTopkAhead)
      : Scores(source, begin, kind == TopkKind::scaled ? begin % source.period : 0, ahead) {}
  // `place` is the element's in its period.
  Scores(const TopkSource& source, int64_t begin, int64_t place, int64_t ahead)
      : data_(static_cast<const T*>(source.data) + begin),
        scale_(static_cast<const A*>(source.scale)),
        place_(place),
        period_(source.period),
        ahead_(ahead) {}

  Vec<T> vector(int64_t i) const {
    Vec<T> v = load_vec<T>(data_ + i);
    if constexpr (kind != TopkKind::given) v = v.abs();
    if constexpr (kind == TopkKind::scaled) v = v * Vec<T>::loadu(scale_ + place_ + i);
    return v;
  }
  A scalar(int64_t i) const {
    return score_of<kind>(data_[i], kind == TopkKind::scaled ? scale_ + place_ + i : nullptr);
  }
  void next() {
    for (int64_t at = 0; at < kTopkWord * int64_t(sizeof(T)); at += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(data_) + ahead_ + at);
    }
    data_ += kTopkWord;
    if constexpr (kind == TopkKind::scaled) {
      place_ += kTopkWord;
      if (place_ >= period_) place_ -= period_;
    }
  }

 private:
  const T* data_;
  const A* scale_;
  int64_t place_, period_, ahead_;
};

template <class A>
struct Tail {
  A numbers[kTopkWord];
  Vec<A> vector(int64_t i) const { return Vec<A>::loadu(numbers + i); }
};

// body(word, first element of it, bits of the elements that are there): whole words, then one tail with `filler`.
template <class S, class Body>
inline void for_words(S scores, int64_t count, const Body& body, typename S::A filler = 0) {
  int64_t i = 0;
  for (; i + kTopkWord <= count; i += kTopkWord, scores.next()) body(scores, i, ~uint64_t(0));
  if (i == count) return;
  Tail<typename S::A> tail;
  for (int64_t j = 0; j < kTopkWord; ++j) tail.numbers[j] = j < count - i ? scores.scalar(j) : filler;
  body(tail, i, (uint64_t(1) << (count - i)) - 1);
}

// Bits of a word's elements for which the order holds against `other`.
template <Order order, class Word, class V>
inline uint64_t word_bits(const Word& word, const V& other) {
  uint64_t bits = 0;
  for (int64_t j = 0; j < kTopkWord; j += V::size()) bits |= compare<order>(word.vector(j), other) << j;
  return bits;
}

// A word's numbers, read once.
template <class A>
struct Numbers {
  static constexpr int64_t kParts = kTopkWord / kLanes<A>;
  static_assert(kParts % 2 == 0);

  template <class Word>
  explicit Numbers(const Word& word) {
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
