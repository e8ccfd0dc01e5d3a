// Comparisons of vectors as bits, and what is made of bits. Included once per instruction set, after lanes.h (no
// include guard on purpose).
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
#include <immintrin.h>
#endif

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

enum class Order { greater, greater_or_equal, equal, unordered };

#if defined(CPU_CAPABILITY_AVX512)
// An immediate operand, so a constant even where nothing is inlined.
template <Order order>
constexpr int kCompareCode = order == Order::greater            ? _CMP_GT_OQ
                             : order == Order::greater_or_equal ? _CMP_GE_OQ
                             : order == Order::equal            ? _CMP_EQ_OQ
                                                                : _CMP_UNORD_Q;
template <Order order>
inline uint64_t compare(Vec<float> a, Vec<float> b) {
  return _mm512_cmp_ps_mask(a, b, kCompareCode<order>);
}
template <Order order>
inline uint64_t compare(Vec<double> a, Vec<double> b) {
  return _mm512_cmp_pd_mask(a, b, kCompareCode<order>);
}
// In how many vectors each lane was greater than the other's.
template <class A>
class Tally {
 public:
  void add_greater(Vec<A> a, Vec<A> b) {
    if constexpr (sizeof(A) == 4) {
      number_ = _mm512_mask_add_epi32(number_, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), number_, _mm512_set1_epi32(1));
    } else {
      number_ = _mm512_mask_add_epi64(number_, _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ), number_, _mm512_set1_epi64(1));
    }
  }
  void store(void* out) const { _mm512_storeu_si512(out, number_); }

 private:
  __m512i number_ = _mm512_setzero_si512();
};

// Lanes of set bits, moved together, at out; writes a whole vector.
inline void compress(float* out, Vec<float> v, uint64_t bits) {
  _mm512_storeu_ps(out, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), v));
}
inline void compress(double* out, Vec<double> v, uint64_t bits) {
  _mm512_storeu_pd(out, _mm512_maskz_compress_pd(static_cast<__mmask8>(bits), v));
}
constexpr bool kHasCompress = true;

// 64 bits as 64 bytes of 0 or 1.
inline void spread_bits(uint64_t bits, bool* out) {
  _mm512_storeu_si512(out, _mm512_maskz_set1_epi8(static_cast<__mmask64>(bits), 1));
}

template <class A>
constexpr bool kHasPermute = true;
struct Permutation {
  __m512i index;
};
inline Permutation permutation(const int64_t* lanes, float) {
  alignas(64) int32_t index[16];
  for (int i = 0; i < 16; ++i) index[i] = static_cast<int32_t>(lanes[i]);
  return {_mm512_load_si512(index)};
}
inline Permutation permutation(const int64_t* lanes, double) { return {_mm512_loadu_si512(lanes)}; }
inline Vec<float> permute(Vec<float> v, Permutation p) { return _mm512_permutexvar_ps(p.index, v); }
inline Vec<double> permute(Vec<double> v, Permutation p) { return _mm512_permutexvar_pd(p.index, v); }

#else

#if defined(CPU_CAPABILITY_AVX2)
// An immediate operand, so a constant even where nothing is inlined.
template <Order order>
constexpr int kCompareCode = order == Order::greater            ? _CMP_GT_OQ
                             : order == Order::greater_or_equal ? _CMP_GE_OQ
                             : order == Order::equal            ? _CMP_EQ_OQ
                                                                : _CMP_UNORD_Q;
template <Order order>
inline uint64_t compare(Vec<float> a, Vec<float> b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, kCompareCode<order>)));
}
template <Order order>
inline uint64_t compare(Vec<double> a, Vec<double> b) {
  return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd(a, b, kCompareCode<order>)));
}
template <class A>
class Tally {
 public:
  void add_greater(Vec<A> a, Vec<A> b) {
    if constexpr (sizeof(A) == 4) {
      number_ = _mm256_sub_epi32(number_, _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
    } else {
      number_ = _mm256_sub_epi64(number_, _mm256_castpd_si256(_mm256_cmp_pd(a, b, _CMP_GT_OQ)));
    }
  }
  void store(void* out) const { _mm256_storeu_si256(static_cast<__m256i*>(out), number_); }

 private:
  __m256i number_ = _mm256_setzero_si256();
};
template <class A>
constexpr bool kHasPermute = sizeof(A) == 4;
struct Permutation {
  __m256i index;
};
inline Permutation permutation(const int64_t* lanes, float) {
  alignas(32) int32_t index[8];
  for (int i = 0; i < 8; ++i) index[i] = static_cast<int32_t>(lanes[i]);
  return {_mm256_load_si256(reinterpret_cast<const __m256i*>(index))};
}
inline Vec<float> permute(Vec<float> v, Permutation p) { return _mm256_permutevar8x32_ps(v, p.index); }
#else
template <Order order, class V>
inline uint64_t compare(V a, V b) {
  typename V::value_type x[V::size()], y[V::size()];
  a.store(x);
  b.store(y);
  uint64_t bits = 0;
  for (int i = 0; i < V::size(); ++i) {
    const bool bit = order == Order::greater            ? x[i] > y[i]
                     : order == Order::greater_or_equal ? x[i] >= y[i]
                     : order == Order::equal            ? x[i] == y[i]
                                                        : x[i] != x[i] || y[i] != y[i];
    bits |= uint64_t(bit) << i;
  }
  return bits;
}
template <class A>
class Tally {
 public:
  void add_greater(Vec<A> a, Vec<A> b) {
    A x[Vec<A>::size()], y[Vec<A>::size()];
    a.store(x);
    b.store(y);
    for (int i = 0; i < Vec<A>::size(); ++i) number_[i] += x[i] > y[i];
  }
  void store(void* out) const { __builtin_memcpy(out, number_, sizeof number_); }

 private:
  std::conditional_t<sizeof(A) == 8, int64_t, int32_t> number_[Vec<A>::size()] = {};
};
template <class A>
constexpr bool kHasPermute = false;
struct Permutation {};
template <class A>
Permutation permutation(const int64_t* lanes, A);
template <class V>
V permute(V v, Permutation p);
#endif

template <class V>
inline void compress(typename V::value_type* out, V v, uint64_t bits) {
  typename V::value_type lanes[V::size()];
  v.store(lanes);
  for (; bits; bits &= bits - 1) *out++ = lanes[__builtin_ctzll(bits)];
}
constexpr bool kHasCompress = false;

// Byte b of the entry for 8 bits is bit b.
struct SpreadTable {
  uint64_t bytes[256];
  constexpr SpreadTable() : bytes() {
    for (int bits = 0; bits < 256; ++bits) {
      for (int b = 0; b < 8; ++b) bytes[bits] |= uint64_t((bits >> b) & 1) << (8 * b);
    }
  }
};
static constexpr SpreadTable spread_table;

inline void spread_bits(uint64_t bits, bool* out) {
  for (int b = 0; b < 8; ++b) __builtin_memcpy(out + 8 * b, &spread_table.bytes[(bits >> (8 * b)) & 255], 8);
}
#endif

// mask = bits, x = 0 where they are not set, for 64 elements of 2, 4 or 8 bytes.
template <class Word>
inline void apply_word(uint64_t bits, Word* x, bool* mask) {
  spread_bits(bits, mask);
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
  const auto* const flag = reinterpret_cast<const uint8_t*>(mask);
#pragma omp simd
  for (int64_t i = 0; i < kTopkWord; ++i) x[i] &= static_cast<Word>(-static_cast<Word>(flag[i]));
#endif
}

template <class Word>
inline void apply_bits(uint64_t bits, Word* x, bool* mask, int64_t count) {
  for (int64_t at = 0; at < kTopkWord * int64_t(sizeof(Word)); at += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(x) + kTopkAhead + at, 1);
  }
  if (count >= kTopkWord) return apply_word(bits, x, mask);
  for (int64_t i = 0; i < count; ++i, bits >>= 1) {
    mask[i] = bits & 1;
    if (!mask[i]) x[i] = 0;
  }
}

// The word of a target that begins at element i, or what of it is before `count`.
inline void apply(uint64_t bits, const TopkTarget& target, int64_t i, int64_t count) {
  if (target.x_bytes == 4) {
    apply_bits(bits, static_cast<uint32_t*>(target.x) + i, target.mask + i, count - i);
  } else if (target.x_bytes == 2) {
    apply_bits(bits, static_cast<uint16_t*>(target.x) + i, target.mask + i, count - i);
  } else {
    apply_bits(bits, static_cast<uint64_t*>(target.x) + i, target.mask + i, count - i);
  }
}

inline int64_t count_bits(uint64_t bits) { return __builtin_popcountll(bits); }

// ---- scores

// A word of scores after another, from `begin` on.
template <class T, TopkKind kind>
class Scores {
 public:
  using A = Acc<T>;
  Scores(const TopkSource& source, int64_t begin)
      : data_(static_cast<const T*>(source.data) + begin),
        scale_(static_cast<const A*>(source.scale)),
        place_(kind == TopkKind::scaled ? begin % source.period : 0),
        period_(source.period) {}

  Vec<T> vector(int64_t i) const {
    Vec<T> v = load_vec<T>(data_ + i);
    if constexpr (kind != TopkKind::given) v = v.abs();
    if constexpr (kind == TopkKind::scaled) v = v * Vec<T>::loadu(scale_ + place_ + i);
    return v;
  }
  A scalar(int64_t i) const {
    A value = static_cast<A>(data_[i]);
    if constexpr (kind != TopkKind::given) value = value < A(0) ? -value : value;
    if constexpr (kind == TopkKind::scaled) value = value * scale_[place_ + i];
    return value;
  }
  // What lies ahead is fetched: the hardware stops at page ends.
  void next() {
    for (int64_t at = 0; at < kTopkWord * int64_t(sizeof(T)); at += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(data_) + kTopkAhead + at);
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
  int64_t place_, period_;
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

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
