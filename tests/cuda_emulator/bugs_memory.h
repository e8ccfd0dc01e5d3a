#pragma once
// Planted mistakes with memory. Each kernel gives ones where nothing goes wrong by chance.
#include "cuda_emulator.h"

namespace {

// ---- past the end

__global__ void oob_shared(float* out) {
  SHARED(float, s, [64]);
  s[threadIdx.x + 1] = 1.f;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x ? threadIdx.x : 1];
}

template <class T>
__global__ void oob_shared_plain(T* out) {
  __shared__ T s[64];
  s[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x ? threadIdx.x : 1];
}

__global__ void oob_dynamic(float* out) {
  DYNAMIC_SHARED(float, s);
  s[threadIdx.x + 1] = 1.f;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x ? threadIdx.x : 1];
}

__global__ void oob_row(float* out) {  // inside the array, but of the next row
  SHARED(float, s, [8][33]);
  float* row = s[threadIdx.x & 7];
  if (threadIdx.x < 8) {
    for (int i = 0; i < 33; ++i) row[i] = 1;
  }
  __syncthreads();
  const int column = 33;
  if (threadIdx.x == 0) s[0][column] = 5;
  __syncthreads();
  out[threadIdx.x] = s[2][3];
}

__global__ void oob_global(const float* x, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= n) out[i < n ? i : 0] = x[i] * 0 + 1.f;
}

__global__ void oob_before(const float* x, float* out) {
  const int i = threadIdx.x;
  const float v = x[i - 1];
  out[i] = i ? v * 0 + 1 : 1;
}

__global__ void oob_local(float* out, int k) {
  float local[4] = {1, 1, 1, 1};
  local[k] = 1;
  out[threadIdx.x] = local[threadIdx.x & 3];
}

// ---- other

__global__ void misaligned(const float* x, float* out, int offset) {
  const float4 v = *reinterpret_cast<const float4*>(x + offset);
  out[threadIdx.x] = v.x * 0 + 1;
}

__global__ void uninitialized_shared(float* out) {
  SHARED(float, s, [64]);
  if (threadIdx.x < 63) s[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = 1 + 0 * s[63 - threadIdx.x];
}

__global__ void uninitialized_global(const float* x, float* out) { out[threadIdx.x] = 1 + 0 * x[threadIdx.x]; }

__global__ void integer_overflow(const int* n, float* out) {
  const int k = n[0] * n[0];
  out[threadIdx.x] = k != 12345 ? 1.f : 0.f;
}

// ---- read-modify-write that needs an atomic

__global__ void increment_shared(float* out) {
  SHARED(int, n, );
  if (!threadIdx.x) n = 0;
  __syncthreads();
  n += 1;
  __syncthreads();
  out[threadIdx.x] = n == 64;
}

__global__ void increment_global(float* sum) {
  if (threadIdx.x == 0) *sum += 1.f;
}

__global__ void atomic_and_plain(float* sum) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) {
    *sum = *sum + 1.f;
  } else {
    atomicAdd(sum, 1.f);
  }
}

// ---- between blocks

__global__ void last_block_no_fence(float* part, unsigned* ticket, float* out) {
  SHARED(bool, last, );
  if (!threadIdx.x) {
    part[blockIdx.x] = 1.f;
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && !threadIdx.x) {
    float sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += part[b];
    *out = sum / float(gridDim.x);
  }
}

__global__ void previous_block(float* out) {
  if (!threadIdx.x) out[blockIdx.x] = blockIdx.x == 0 ? 1.f : out[blockIdx.x - 1];
}

}  // namespace
