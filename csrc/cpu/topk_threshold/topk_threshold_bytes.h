// Bytes of a word of 64 elements. Included once per instruction set (no include guard on purpose).
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

typedef uint8_t Bytes __attribute__((vector_size(kTopkWord)));

inline Bytes load_bytes(const uint8_t* p) {
  Bytes out;
  __builtin_memcpy(&out, p, sizeof out);
  return out;
}

#if defined(CPU_CAPABILITY_AVX512)
// Whole numbers from 0 to 255, as bytes.
inline void store_bytes(uint8_t* out, Vec<double> v) {
  const __m128i bytes = _mm256_cvtepi32_epi8(_mm512_cvttpd_epi32(v));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), bytes);
}

// Of 64 bytes each, which are greater, or equal.
inline uint64_t greater_bytes(const uint8_t* a, const uint8_t* b) {
  return _mm512_cmpgt_epu8_mask(_mm512_loadu_si512(a), _mm512_loadu_si512(b));
}
inline uint64_t equal_bytes(const uint8_t* a, const uint8_t* b) {
  return _mm512_cmpeq_epu8_mask(_mm512_loadu_si512(a), _mm512_loadu_si512(b));
}
#elif defined(CPU_CAPABILITY_AVX2)
inline void store_bytes(uint8_t* out, Vec<float> v) {
  const __m256i all = _mm256_cvttps_epi32(v);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(words, words));
}
inline void store_bytes(uint8_t* out, Vec<double> v) {
  const __m128i all = _mm256_cvttpd_epi32(v), words = _mm_packus_epi32(all, all);
  _mm_storeu_si32(out, _mm_packus_epi16(words, words));
}
template <class Compare>
inline uint64_t compare_bytes(const uint8_t* a, const uint8_t* b, const Compare& compare) {
  uint64_t bits = 0;
  for (int i = 0; i < 64; i += 32) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + i));
    const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + i));
    bits |= uint64_t(static_cast<uint32_t>(_mm256_movemask_epi8(compare(x, y)))) << i;
  }
  return bits;
}
inline uint64_t equal_bytes(const uint8_t* a, const uint8_t* b) {
  return compare_bytes(a, b, [](__m256i x, __m256i y) { return _mm256_cmpeq_epi8(x, y); });
}
inline uint64_t greater_bytes(const uint8_t* a, const uint8_t* b) {  // not smaller or equal
  return ~compare_bytes(a, b, [](__m256i x, __m256i y) { return _mm256_cmpeq_epi8(_mm256_max_epu8(x, y), y); });
}
#else
template <class V>
inline void store_bytes(uint8_t* out, V v) {
  typename V::value_type lanes[V::size()];
  v.store(lanes);
  for (int i = 0; i < V::size(); ++i) out[i] = static_cast<uint8_t>(lanes[i]);
}
inline uint64_t greater_bytes(const uint8_t* a, const uint8_t* b) {
  uint64_t bits = 0;
  for (int i = 0; i < 64; ++i) bits |= uint64_t(a[i] > b[i]) << i;
  return bits;
}
inline uint64_t equal_bytes(const uint8_t* a, const uint8_t* b) {
  uint64_t bits = 0;
  for (int i = 0; i < 64; ++i) bits |= uint64_t(a[i] == b[i]) << i;
  return bits;
}
#endif

// Which byte a number becomes: the number of steps to it, rising with it from 0 to 255. Those equal to `middle`, and no
// others, become kMiddleStep. NaN has no meaning.
constexpr int kMiddleStep = 128;

template <class A>
struct Steps {
  A middle, per_unit;

  // Steps that reach from `low` to `high`, or nearly.
  Steps(A low, A middle_, A high) {
    constexpr A kMost = std::numeric_limits<A>::max() / 4, kSteepest = A(1e30);
    middle = std::clamp(middle_, -kMost, kMost);
    const A length = std::max(std::clamp(high, -kMost, kMost) - middle, middle - std::clamp(low, -kMost, kMost));
    per_unit = std::min(A(126) / std::max(length, std::numeric_limits<A>::min()), kSteepest);
  }
};

#if defined(CPU_CAPABILITY_AVX512)
inline void store_steps(uint8_t* out, Vec<float> v, Vec<float> middle, Vec<float> per_unit) {
  constexpr int kUp = _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC;
  const Vec<float> steps = at::vec::fmadd(v - middle, per_unit, Vec<float>(kMiddleStep));
  __m512i number = _mm512_cvt_roundps_epi32(_mm512_max_ps(steps, _mm512_setzero_ps()), kUp);
  const auto above = static_cast<__mmask16>(compare<Order::greater>(v, middle));
  const auto below = static_cast<__mmask16>(compare<Order::greater>(middle, v));
  number = _mm512_mask_max_epu32(number, above, number, _mm512_set1_epi32(kMiddleStep + 1));
  number = _mm512_mask_min_epu32(number, below, number, _mm512_set1_epi32(kMiddleStep - 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtusepi32_epi8(number));
}
#endif
template <class V>
inline void store_steps(uint8_t* out, V v, V middle, V per_unit) {
  const V steps = at::vec::fmadd(v - middle, per_unit, V(kMiddleStep));
  const V number = at::vec::clamp(steps, V(0), V(255)).ceil();
  const V above = V::blendv(number, at::vec::clamp_min(number, V(kMiddleStep + 1)), v > middle);
  store_bytes(out, V::blendv(above, at::vec::clamp_max(above, V(kMiddleStep - 1)), middle > v));
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
