// Vectors and bits: comparisons, counts, numbers moved together and apart. Included once per instruction set, after
// lanes.h (no include guard on purpose).
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
#include <immintrin.h>
#endif

#include <cstdint>
#include <type_traits>

// Of what depends on the compute type only, one copy, which the kernels of all dtypes call.
#define SPARSE_ACCEL_ONCE __attribute__((noinline)) static

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

enum class Order { greater, greater_or_equal, equal, unordered };

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
// An immediate operand, so a constant even where nothing is inlined.
template <Order order>
constexpr int kCompareCode = order == Order::greater            ? _CMP_GT_OQ
                             : order == Order::greater_or_equal ? _CMP_GE_OQ
                             : order == Order::equal            ? _CMP_EQ_OQ
                                                                : _CMP_UNORD_Q;
#endif

#if defined(CPU_CAPABILITY_AVX512)
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

// Some bits in each lane.
template <class A>
class LaneBits {
 public:
  // Bits are added from the lowest on: whether a compares so with b.
  template <Order order>
  void add(Vec<A> a, Vec<A> b) {
    if constexpr (sizeof(A) == 4) {
      bits_ = _mm512_mask_or_epi32(bits_, static_cast<__mmask16>(compare<order>(a, b)), bits_, next_);
      next_ = _mm512_slli_epi32(next_, 1);
    } else {
      bits_ = _mm512_mask_or_epi64(bits_, static_cast<__mmask8>(compare<order>(a, b)), bits_, next_);
      next_ = _mm512_slli_epi64(next_, 1);
    }
  }
  void store(uint32_t* out) const {
    if constexpr (sizeof(A) == 4) {
      _mm512_storeu_si512(out, bits_);
    } else {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi64_epi32(bits_));
    }
  }

 private:
  __m512i bits_ = _mm512_setzero_si512(), next_ = sizeof(A) == 4 ? _mm512_set1_epi32(1) : _mm512_set1_epi64(1);
};

// Lanes of set bits, moved together, at out; writes a whole vector.
inline void compress(float* out, Vec<float> v, uint64_t bits) {
  _mm512_storeu_ps(out, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), v));
}
inline void compress(double* out, Vec<double> v, uint64_t bits) {
  _mm512_storeu_pd(out, _mm512_maskz_compress_pd(static_cast<__mmask8>(bits), v));
}
constexpr bool kHasCompress = true;

// Numbers that lie together, moved to the lanes of set bits; what the others hold is of no use. Reads a whole vector.
inline Vec<float> expand(const float* p, uint64_t bits) {
  return _mm512_maskz_expand_ps(static_cast<__mmask16>(bits), _mm512_loadu_ps(p));
}
inline Vec<double> expand(const double* p, uint64_t bits) {
  return _mm512_maskz_expand_pd(static_cast<__mmask8>(bits), _mm512_loadu_pd(p));
}

#elif defined(CPU_CAPABILITY_AVX2)
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
template <class A>
class LaneBits {
 public:
  template <Order order>
  void add(Vec<A> a, Vec<A> b) {
    if constexpr (sizeof(A) == 4) {
      const __m256 found = _mm256_cmp_ps(a, b, kCompareCode<order>);
      bits_ = _mm256_or_si256(bits_, _mm256_and_si256(_mm256_castps_si256(found), next_));
      next_ = _mm256_slli_epi32(next_, 1);
    } else {
      const __m256d found = _mm256_cmp_pd(a, b, kCompareCode<order>);
      bits_ = _mm256_or_si256(bits_, _mm256_and_si256(_mm256_castpd_si256(found), next_));
      next_ = _mm256_slli_epi64(next_, 1);
    }
  }
  void store(uint32_t* out) const {
    alignas(32) uint32_t all[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(all), bits_);
    for (int i = 0; i < kLanes<A>; ++i) out[i] = all[i * sizeof(A) / 4];
  }

 private:
  __m256i bits_ = _mm256_setzero_si256(), next_ = sizeof(A) == 4 ? _mm256_set1_epi32(1) : _mm256_set1_epi64x(1);
};

// Lane i of the entry for 8 bits is how many bits are set below bit i.
struct ExpandTable {
  alignas(32) uint32_t lanes[256][8];
  constexpr ExpandTable() : lanes() {
    for (int bits = 0; bits < 256; ++bits) {
      for (int i = 0; i < 7; ++i) lanes[bits][i + 1] = lanes[bits][i] + ((bits >> i) & 1);
    }
  }
};
static constexpr ExpandTable expand_table;

inline Vec<float> expand(const float* p, uint64_t bits) {
  const auto* const lanes = reinterpret_cast<const __m256i*>(expand_table.lanes[bits]);
  return _mm256_permutevar8x32_ps(_mm256_loadu_ps(p), _mm256_load_si256(lanes));
}
inline Vec<double> expand(const double* p, uint64_t bits) {
  const auto* const halves = reinterpret_cast<const __m256i*>(expand_table.lanes[_pdep_u64(bits, 0x55) * 3]);
  return _mm256_castps_pd(_mm256_permutevar8x32_ps(_mm256_castpd_ps(_mm256_loadu_pd(p)), _mm256_load_si256(halves)));
}

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
template <class A>
class LaneBits {
 public:
  template <Order order>
  void add(Vec<A> a, Vec<A> b) {
    const uint64_t found = compare<order>(a, b);
    for (int i = 0; i < kLanes<A>; ++i) bits_[i] |= uint32_t((found >> i) & 1) << number_;
    ++number_;
  }
  void store(uint32_t* out) const { __builtin_memcpy(out, bits_, sizeof bits_); }

 private:
  uint32_t bits_[kLanes<A>] = {};
  int number_ = 0;
};

template <class A>
inline Vec<A> expand(const A* p, uint64_t bits) {
  A lanes[kLanes<A>] = {};
  for (; bits; bits &= bits - 1) lanes[__builtin_ctzll(bits)] = *p++;
  return Vec<A>::loadu(lanes);
}
#endif

#if !defined(CPU_CAPABILITY_AVX512)
template <class V>
inline void compress(typename V::value_type* out, V v, uint64_t bits) {
  typename V::value_type lanes[V::size()];
  v.store(lanes);
  for (; bits; bits &= bits - 1) *out++ = lanes[__builtin_ctzll(bits)];
}
constexpr bool kHasCompress = false;
#endif

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
