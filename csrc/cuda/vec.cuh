#pragma once
// Element types, and packs of neighbouring elements that move in 16-byte accesses.
#include <cstdint>

#include "../math.h"
#include "launch.cuh"

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

// N neighbouring numbers. Aligned so that a copy is one access (several of 16 bytes if it is longer).
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T value[N];
};

template <int N, class T>
__device__ __forceinline__ Pack<Compute<T>, N> load(const T* __restrict__ from) {
  const Pack<T, N> stored = *reinterpret_cast<const Pack<T, N>*>(from);
  Pack<Compute<T>, N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) out.value[i] = widen(stored.value[i]);
  return out;
}

template <int N, class T>
__device__ __forceinline__ void store(T* to, const Pack<Compute<T>, N>& numbers) {
  Pack<T, N> stored;
#pragma unroll
  for (int i = 0; i < N; ++i) narrow(numbers.value[i], stored.value[i]);
  *reinterpret_cast<Pack<T, N>*>(to) = stored;
}

// Whether a pack can be read at this address.
inline bool is_aligned(const void* address) { return reinterpret_cast<std::uintptr_t>(address) % 16 == 0; }

}  // namespace sparse_accel::cuda
