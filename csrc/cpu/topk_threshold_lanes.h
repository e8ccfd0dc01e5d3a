// Comparisons of vectors as bits, and what is made of bits. Included once per instruction set, after lanes.h (no
// include guard on purpose).
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
#include <immintrin.h>
#endif

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

enum class Order { greater, greater_or_equal, equal, unordered };

#if defined(CPU_CAPABILITY_AVX512)
constexpr int compare_code(Order order) {
  return order == Order::greater            ? _CMP_GT_OQ
         : order == Order::greater_or_equal ? _CMP_GE_OQ
         : order == Order::equal            ? _CMP_EQ_OQ
                                            : _CMP_UNORD_Q;
}
template <Order order>
inline uint64_t compare(Vec<float> a, Vec<float> b) {
  return _mm512_cmp_ps_mask(a, b, compare_code(order));
}
template <Order order>
inline uint64_t compare(Vec<double> a, Vec<double> b) {
  return _mm512_cmp_pd_mask(a, b, compare_code(order));
}
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
constexpr int compare_code(Order order) {
  return order == Order::greater            ? _CMP_GT_OQ
         : order == Order::greater_or_equal ? _CMP_GE_OQ
         : order == Order::equal            ? _CMP_EQ_OQ
                                            : _CMP_UNORD_Q;
}
template <Order order>
inline uint64_t compare(Vec<float> a, Vec<float> b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, compare_code(order))));
}
template <Order order>
inline uint64_t compare(Vec<double> a, Vec<double> b) {
  return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd(a, b, compare_code(order))));
}
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
  void next() {
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

// body(word, first element of it, bits of the elements that are there): whole words, then one tail.
template <class S, class Body>
inline void for_words(S scores, int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + kTopkWord <= count; i += kTopkWord, scores.next()) body(scores, i, ~uint64_t(0));
  if (i == count) return;
  Tail<typename S::A> tail;
  for (int64_t j = 0; j < kTopkWord; ++j) tail.numbers[j] = j < count - i ? scores.scalar(j) : 0;
  body(tail, i, (uint64_t(1) << (count - i)) - 1);
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
