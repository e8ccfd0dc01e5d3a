// Comparisons of vectors as bits, and what is made of bits. Included once per instruction set, after lanes.h (no
// include guard on purpose).
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <tuple>

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
// A count in each lane.
template <class A>
class Tally {
 public:
  explicit Tally(int start = 0) : number_(all(start)) {}

  // Where a > b.
  void add_greater(Vec<A> a, Vec<A> b) { number_ = add(number_, greater(a, b), all(1)); }
  // Where b > a, from one count to the other.
  static void order(Tally& first, Tally& second, Vec<A> a, Vec<A> b) {
    const uint64_t bits = greater(b, a);
    first.number_ = add(first.number_, bits, all(1));
    second.number_ = add(second.number_, bits, all(-1));
  }
  uint64_t less_than(int n) const {
    if constexpr (sizeof(A) == 4) {
      return _mm512_cmplt_epi32_mask(number_, all(n));
    } else {
      return _mm512_cmplt_epi64_mask(number_, all(n));
    }
  }
  void store(void* out) const { _mm512_storeu_si512(out, number_); }

 private:
  static uint64_t greater(Vec<A> a, Vec<A> b) { return compare<Order::greater>(a, b); }
  static __m512i all(int n) { return sizeof(A) == 4 ? _mm512_set1_epi32(n) : _mm512_set1_epi64(n); }
  static __m512i add(__m512i to, uint64_t bits, __m512i n) {
    if constexpr (sizeof(A) == 4) {
      return _mm512_mask_add_epi32(to, static_cast<__mmask16>(bits), to, n);
    } else {
      return _mm512_mask_add_epi64(to, static_cast<__mmask8>(bits), to, n);
    }
  }

  __m512i number_;
};

// Lanes of set bits, moved together, at out; writes a whole vector.
inline void compress(float* out, Vec<float> v, uint64_t bits) {
  _mm512_storeu_ps(out, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), v));
}
inline void compress(double* out, Vec<double> v, uint64_t bits) {
  _mm512_storeu_pd(out, _mm512_maskz_compress_pd(static_cast<__mmask8>(bits), v));
}
constexpr bool kHasCompress = true;

// Numbers that lie together, moved to the lanes of set bits; reads a whole vector.
inline Vec<float> expand(const float* p, uint64_t bits) {
  return _mm512_maskz_expand_ps(static_cast<__mmask16>(bits), _mm512_loadu_ps(p));
}
inline Vec<double> expand(const double* p, uint64_t bits) {
  return _mm512_maskz_expand_pd(static_cast<__mmask8>(bits), _mm512_loadu_pd(p));
}

// 64 bits as 64 bytes of 0 or 1; past the caches `out` is a multiple of 64.
inline void spread_bits(uint64_t bits, bool* out, bool passes_cache) {
  const __m512i bytes = _mm512_maskz_set1_epi8(static_cast<__mmask64>(bits), 1);
  if (passes_cache) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out), bytes);
  } else {
    _mm512_storeu_si512(out, bytes);
  }
}

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
  explicit Tally(int start = 0) : number_(all(start)) {}

  void add_greater(Vec<A> a, Vec<A> b) { number_ = sub(number_, greater(a, b)); }
  static void order(Tally& first, Tally& second, Vec<A> a, Vec<A> b) {
    const __m256i minus_one = greater(b, a);
    first.number_ = sub(first.number_, minus_one);
    second.number_ = add(second.number_, minus_one);
  }
  uint64_t less_than(int n) const {
    if constexpr (sizeof(A) == 4) {
      const __m256i less = _mm256_cmpgt_epi32(all(n), number_);
      return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(less)));
    } else {
      const __m256i less = _mm256_cmpgt_epi64(all(n), number_);
      return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(less)));
    }
  }
  void store(void* out) const { _mm256_storeu_si256(static_cast<__m256i*>(out), number_); }

 private:
  static __m256i greater(Vec<A> a, Vec<A> b) {
    if constexpr (sizeof(A) == 4) {
      return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
    } else {
      return _mm256_castpd_si256(_mm256_cmp_pd(a, b, _CMP_GT_OQ));
    }
  }
  static __m256i all(int n) { return sizeof(A) == 4 ? _mm256_set1_epi32(n) : _mm256_set1_epi64x(n); }
  static __m256i add(__m256i a, __m256i b) { return sizeof(A) == 4 ? _mm256_add_epi32(a, b) : _mm256_add_epi64(a, b); }
  static __m256i sub(__m256i a, __m256i b) { return sizeof(A) == 4 ? _mm256_sub_epi32(a, b) : _mm256_sub_epi64(a, b); }

  __m256i number_;
};
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
  explicit Tally(int start = 0) {
    for (Count& number : number_) number = start;
  }

  void add_greater(Vec<A> a, Vec<A> b) {
    const uint64_t bits = compare<Order::greater>(a, b);
    for (int i = 0; i < kSize; ++i) number_[i] += (bits >> i) & 1;
  }
  static void order(Tally& first, Tally& second, Vec<A> a, Vec<A> b) {
    const uint64_t bits = compare<Order::greater>(b, a);
    for (int i = 0; i < kSize; ++i) {
      first.number_[i] += (bits >> i) & 1;
      second.number_[i] -= (bits >> i) & 1;
    }
  }
  uint64_t less_than(int n) const {
    uint64_t bits = 0;
    for (int i = 0; i < kSize; ++i) bits |= uint64_t(number_[i] < n) << i;
    return bits;
  }
  void store(void* out) const { __builtin_memcpy(out, number_, sizeof number_); }

 private:
  static constexpr int kSize = Vec<A>::size();
  using Count = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  Count number_[kSize];
};
#endif

template <class V>
inline void compress(typename V::value_type* out, V v, uint64_t bits) {
  typename V::value_type lanes[V::size()];
  v.store(lanes);
  for (; bits; bits &= bits - 1) *out++ = lanes[__builtin_ctzll(bits)];
}
constexpr bool kHasCompress = false;

template <class A>
inline Vec<A> expand(const A* p, uint64_t bits) {
  A lanes[kLanes<A>] = {};
  for (; bits; bits &= bits - 1) lanes[__builtin_ctzll(bits)] = *p++;
  return Vec<A>::loadu(lanes);
}

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

inline void spread_bits(uint64_t bits, bool* out, bool) {
  for (int b = 0; b < 8; ++b) __builtin_memcpy(out + 8 * b, &spread_table.bytes[(bits >> (8 * b)) & 255], 8);
}
#endif

// The lowest bits, moved to those of `places`.
inline uint64_t deposit_bits(uint64_t bits, uint64_t places) {
#if defined(__BMI2__)
  return _pdep_u64(bits, places);
#else
  uint64_t out = 0;
  for (; places; places &= places - 1, bits >>= 1) out |= bits & 1 ? places & -places : 0;
  return out;
#endif
}

inline int64_t count_bits(uint64_t bits) { return __builtin_popcountll(bits); }

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
