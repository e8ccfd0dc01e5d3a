#pragma once
// The CUDA types that kernels and launchers name, for machines without the toolkit.
#include <cstddef>
#include <cstdint>
#include <cstring>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

// As wide and as strictly aligned as on the GPU: UBSan then finds misaligned vector accesses.
#define EMU_VECTOR_TYPES(T, name)                    \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; }; \
  struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; };
EMU_VECTOR_TYPES(float, float)
EMU_VECTOR_TYPES(double, double)
EMU_VECTOR_TYPES(int, int)
EMU_VECTOR_TYPES(unsigned, uint)
#undef EMU_VECTOR_TYPES

typedef struct CUstream_st* cudaStream_t;
enum cudaError_t : int { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2 };
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };

// Storage only, as under __CUDA_NO_HALF_OPERATORS__: kernels convert, and compute in float.
struct __half {
  std::uint16_t bits;
};
struct __nv_bfloat16 {
  std::uint16_t bits;
};

namespace emu {
inline std::uint32_t float_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float bits_float(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
// x / 2^shift, rounded to nearest, ties to even; shift in [1, 31].
inline std::uint32_t shift_round(std::uint32_t x, unsigned shift) {
  const std::uint32_t half = 1u << (shift - 1), rest = x & ((1u << shift) - 1), out = x >> shift;
  return out + (rest > half || (rest == half && (out & 1)));
}
}  // namespace emu

inline float __bfloat162float(__nv_bfloat16 x) { return emu::bits_float(std::uint32_t(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  if (x != x) return {0x7fff};
  return {std::uint16_t(emu::shift_round(emu::float_bits(x), 16))};
}

inline float __half2float(__half x) {
  const std::uint32_t sign = std::uint32_t(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31,
                      fraction = x.bits & 0x3ff;
  if (exponent == 31) return emu::bits_float(sign | 0x7f800000u | fraction << 13);
  if (exponent != 0) return emu::bits_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float magnitude = float(fraction) * 0x1p-24f;  // zero or subnormal
  return sign ? -magnitude : magnitude;
}
inline __half __float2half_rn(float x) {
  const std::uint32_t bits = emu::float_bits(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  std::uint32_t out;
  if (magnitude > 0x7f800000) {
    out = 0x7fff;  // NaN
  } else if (magnitude >= 0x477ff000) {
    out = 0x7c00;  // rounds beyond 65504
  } else if (magnitude >= 0x38800000) {
    out = emu::shift_round(magnitude - (112u << 23), 13);
  } else {  // subnormal: the fraction with its leading one, shifted to units of 2^-24
    const std::uint32_t exponent = magnitude >> 23;
    out = exponent < 102 ? 0 : emu::shift_round((magnitude & 0x7fffff) | 0x800000, 126 - exponent);
  }
  return {std::uint16_t(sign | out)};
}
