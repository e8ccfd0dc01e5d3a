#pragma once
// Element types, and packs of neighbouring elements that move in 16-byte accesses.
#include <cstdint>
#include <cstdlib>

#include "../math.h"
#include "launch.cuh"
#include "runtime.h"

namespace sparse_accel::cuda {

// The type a kernel computes in: float for half, bfloat16 and float; double for double.
template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

SPARSE_ACCEL_HOST_DEVICE float widen(float x) { return x; }
SPARSE_ACCEL_HOST_DEVICE double widen(double x) { return x; }
SPARSE_ACCEL_HOST_DEVICE float widen(__half x) { return __half2float(x); }
SPARSE_ACCEL_HOST_DEVICE float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

SPARSE_ACCEL_HOST_DEVICE void narrow(float x, float& out) { out = x; }
SPARSE_ACCEL_HOST_DEVICE void narrow(double x, double& out) { out = x; }
SPARSE_ACCEL_HOST_DEVICE void narrow(float x, __half& out) { out = __float2half_rn(x); }
SPARSE_ACCEL_HOST_DEVICE void narrow(float x, __nv_bfloat16& out) { out = __float2bfloat16_rn(x); }

// Elements of T in 16 bytes.
template <class T>
constexpr int kWidth = 16 / int(sizeof(T));

// N neighbouring numbers. Aligned so that one access moves it through shared memory (several of 16 bytes if it is
// longer).
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T value[N];
};

// N elements as they lie in global memory, and as the words that move them.
template <int kBytes>
struct WordOf {
  using type = uint4;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<4> {
  using type = unsigned;
};
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<1> {
  using type = unsigned char;
};
template <class T, int N>
union Stored {
  using Word = typename WordOf<N* int(sizeof(T))>::type;
  static constexpr int kWords = N * sizeof(T) / sizeof(Word);
  T value[N];
  Word word[kWords];
};

template <int N, class T>
__device__ __forceinline__ Pack<Compute<T>, N> load(const T* from) {
  using S = Stored<T, N>;
  S stored;
#pragma unroll
  for (int i = 0; i < S::kWords; ++i) stored.word[i] = reinterpret_cast<const typename S::Word*>(from)[i];
  Pack<Compute<T>, N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) out.value[i] = widen(stored.value[i]);
  return out;
}

template <int N, class T>
__device__ __forceinline__ void store(T* to, const Pack<Compute<T>, N>& numbers) {
  using S = Stored<T, N>;
  S stored;
#pragma unroll
  for (int i = 0; i < N; ++i) narrow(numbers.value[i], stored.value[i]);
#pragma unroll
  for (int i = 0; i < S::kWords; ++i) {
    store_word(reinterpret_cast<typename S::Word*>(to) + i, stored.word[i]);
  }
}

// use(i, at(i), load(at(i))) for i = begin, begin + step, ... below end: loads of several packs go out before the first
// is used, so that memory's latency is waited for once. In order: the results are those of a plain loop.
template <int kAtOnce, class Index, class At, class Load, class Use>
__device__ __forceinline__ void stream(Index begin, Index end, Index step, const At& at, const Load& load,
                                       const Use& use) {
  Index i = begin;
  for (; i + (kAtOnce - 1) * step < end; i += kAtOnce * step) {
    std::int64_t offset[kAtOnce];
    decltype(load(std::int64_t(0))) loaded[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) offset[k] = at(i + k * step);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) loaded[k] = load(offset[k]);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) use(i + k * step, offset[k], loaded[k]);
  }
#pragma unroll 1
  for (; i < end; i += step) {
    const std::int64_t offset = at(i);
    use(i, offset, load(offset));
  }
}

// body(T()), of the elements' type T. Programs that test instrumented kernels leave types out.
template <class Body>
void with_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f32:
      return body(float());
#ifndef SPARSE_ACCEL_FLOAT_ALONE
    case DType::f64:
      return body(double());
    case DType::bf16:
      return body(__nv_bfloat16());
#endif
#if !defined(SPARSE_ACCEL_FLOAT_ALONE) && !defined(SPARSE_ACCEL_ONE_HALF)
    case DType::f16:
      return body(__half());
#endif
    default:
      std::abort();
  }
}

// Whether a pack can be read at this address.
inline bool is_aligned(const void* address) { return reinterpret_cast<std::uintptr_t>(address) % 16 == 0; }

}  // namespace sparse_accel::cuda
