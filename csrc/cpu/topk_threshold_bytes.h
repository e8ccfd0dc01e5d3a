// A word of 64 bytes. Included once per instruction set (no include guard on purpose).
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
#include <immintrin.h>
#endif

#include <cstdint>

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
inline void store_bytes(uint8_t* out, Vec<float> v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(v)));
}
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

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
