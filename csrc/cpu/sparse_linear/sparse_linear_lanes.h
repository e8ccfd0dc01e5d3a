// What the kernels of sparse_linear ask of an instruction set. PlainLanes has it in plain C++, for any processor and
// for the tests of the other widths' kernels; each function of the others is one or two instructions. Included once per
// instruction set (no include guard on purpose).
//   V                    kWidth floats
//   zero, load, store, broadcast, fma (a b + c), sum
//   widen(values)        kWidth neighbouring values as floats
//   expand(values, bits) value after value to the lanes whose bit is set, zero to the others; may read kWidth values
//   count(bits)
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "sparse_linear_tables.h"

#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
#include <immintrin.h>
#endif

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

// Two-byte values as they lie in memory.
struct Bfloat16Bits {
  std::uint16_t bits;
};
struct HalfBits {
  std::uint16_t bits;
};

static inline float plain_float(float value) { return value; }
static inline float plain_float(std::int8_t value) { return static_cast<float>(value); }
static inline float plain_float(Bfloat16Bits value) {
  const std::uint32_t wide = static_cast<std::uint32_t>(value.bits) << 16;
  float out;
  std::memcpy(&out, &wide, sizeof out);
  return out;
}
static inline float plain_float(HalfBits value) {
  const std::uint32_t sign = (value.bits & 0x8000u) << 16, exponent = value.bits >> 10 & 31,
                      fraction = value.bits & 1023;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // zero or subnormal
    return sign ? -magnitude : magnitude;
  }
  const std::uint32_t wide = sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13;
  float out;
  std::memcpy(&out, &wide, sizeof out);
  return out;
}

template <int kLanesOf>
struct PlainLanes {
  static constexpr int kWidth = kLanesOf;
  struct V {
    float lane[kWidth];
  };
  static inline V zero() { return V{}; }
  static inline V load(const float* from) {
    V out;
    std::memcpy(out.lane, from, sizeof out.lane);
    return out;
  }
  static inline void store(float* to, V v) { std::memcpy(to, v.lane, sizeof v.lane); }
  static inline V broadcast(float x) {
    V out;
    for (int i = 0; i < kWidth; ++i) out.lane[i] = x;
    return out;
  }
  static inline V add(V a, V b) {
    for (int i = 0; i < kWidth; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  static inline V fma(V a, V b, V c) {
    for (int i = 0; i < kWidth; ++i) c.lane[i] += a.lane[i] * b.lane[i];
    return c;
  }
  static inline float sum(V v) {
    float lane[kWidth];
    std::memcpy(lane, v.lane, sizeof lane);
    for (int step = kWidth / 2; step > 0; step /= 2) {
      for (int i = 0; i < step; ++i) lane[i] += lane[i + step];
    }
    return lane[0];
  }
  template <class T>
  static inline V widen(const T* values) {
    V out;
    for (int i = 0; i < kWidth; ++i) out.lane[i] = plain_float(values[i]);
    return out;
  }
  template <class T>
  static inline V expand(const T* values, std::uint32_t bits) {
    V out;
    for (int i = 0; i < kWidth; ++i) {
      const bool set = bits >> i & 1;
      out.lane[i] = set ? plain_float(*values) : 0.0f;
      values += set;
    }
    return out;
  }
  static inline int count(std::uint32_t bits) {
    int out = 0;
    for (int i = 0; i < kWidth; i += 8) out += kSparseTables.count[bits >> i & 255];
    return out;
  }
};

#if defined(CPU_CAPABILITY_AVX2)
struct Avx2Lanes {
  static constexpr int kWidth = 8;
  using V = __m256;
  static inline V zero() { return _mm256_setzero_ps(); }
  static inline V load(const float* from) { return _mm256_loadu_ps(from); }
  static inline void store(float* to, V v) { _mm256_storeu_ps(to, v); }
  static inline V broadcast(float x) { return _mm256_set1_ps(x); }
  static inline V add(V a, V b) { return _mm256_add_ps(a, b); }
  static inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static inline float sum(V v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static inline V widen(const float* values) { return load(values); }
  static inline V widen(const Bfloat16Bits* values) { return from_bfloat16(sixteen_bytes(values)); }
  static inline V widen(const HalfBits* values) { return _mm256_cvtph_ps(sixteen_bytes(values)); }
  static inline V widen(const std::int8_t* values) { return from_int8(eight_bytes(values)); }
  // Not by a permutation across lanes, which takes longer than two loads.
  static inline V expand(const float* values, std::uint32_t bits) {
    const __m128 low = _mm_loadu_ps(values), high = _mm_loadu_ps(values + count(bits & 15));
    const __m256i both = _mm256_castps_si256(_mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1));
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(both, table(kSparseTables.four[bits])));
  }
  static inline V expand(const Bfloat16Bits* values, std::uint32_t bits) {
    const __m256i both = _mm256_broadcastsi128_si256(sixteen_bytes(values));
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(both, table(kSparseTables.high[bits])));
  }
  static inline V expand(const HalfBits* values, std::uint32_t bits) { return _mm256_cvtph_ps(pairs(values, bits)); }
  static inline V expand(const std::int8_t* values, std::uint32_t bits) {
    return from_int8(_mm_shuffle_epi8(eight_bytes(values), eight_bytes(kSparseTables.one[bits])));
  }
  static inline int count(std::uint32_t bits) { return __builtin_popcount(bits); }

 private:
  static inline __m128i sixteen_bytes(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
  static inline __m128i eight_bytes(const void* from) { return _mm_loadl_epi64(static_cast<const __m128i*>(from)); }
  static inline __m128i pairs(const void* values, std::uint32_t bits) {
    return _mm_shuffle_epi8(sixteen_bytes(values), sixteen_bytes(kSparseTables.two[bits]));
  }
  static inline __m256i table(const std::uint8_t (&row)[32]) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(row));
  }
  static inline V from_bfloat16(__m128i values) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(values), 16));
  }
  static inline V from_int8(__m128i values) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(values)); }
};
using Lanes = Avx2Lanes;
#elif defined(CPU_CAPABILITY_AVX512)
struct Avx512Lanes {
  static constexpr int kWidth = 16;
  using V = __m512;
  static inline V zero() { return _mm512_setzero_ps(); }
  static inline V load(const float* from) { return _mm512_loadu_ps(from); }
  static inline void store(float* to, V v) { _mm512_storeu_ps(to, v); }
  static inline V broadcast(float x) { return _mm512_set1_ps(x); }
  static inline V add(V a, V b) { return _mm512_add_ps(a, b); }
  static inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static inline float sum(V v) { return _mm512_reduce_add_ps(v); }
  static inline V widen(const float* values) { return load(values); }
  static inline V widen(const Bfloat16Bits* values) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves(values)), 16));
  }
  static inline V widen(const HalfBits* values) { return _mm512_cvtph_ps(halves(values)); }
  static inline V widen(const std::int8_t* values) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values))));
  }
  template <class T>
  static inline V expand(const T* values, std::uint32_t bits) {
    return _mm512_maskz_expand_ps(static_cast<__mmask16>(bits), widen(values));
  }
  static inline int count(std::uint32_t bits) { return __builtin_popcount(bits); }

 private:
  static inline __m256i halves(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
};
using Lanes = Avx512Lanes;
#else
using Lanes = PlainLanes<8>;
#endif

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
