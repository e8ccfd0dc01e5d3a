#pragma once
// Planted mistakes with barriers and warp operations. Each kernel gives ones where nothing goes wrong by chance.
#include "cuda_emulator.h"

namespace {

// ---- a barrier is missing between writing and reading

__global__ void missing_mirrored(float* out) {
  SHARED(float, s, [64]);
  const int t = threadIdx.x;
  s[t] = float(t);
  out[t] = s[63 - t] == float(63 - t);
}

__global__ void missing_up(float* out) {  // invisible where threads run from the last to the first
  SHARED(float, s, [65]);
  const int t = threadIdx.x;
  if (!t) s[64] = 64;
  s[t] = float(t);
  out[t] = s[t + 1] == float(t + 1);
}

__global__ void missing_down(float* out) {  // invisible where threads run from the first to the last
  SHARED(float, s, [65]);
  const int t = threadIdx.x;
  s[t + 1] = float(t + 1);
  if (!t) s[0] = 0;
  out[t] = s[t] == float(t);
}

__global__ void missing_in_loop(float* out) {  // the next round's write overtakes this round's read
  SHARED(float, s, [2]);
  const int t = threadIdx.x, warp = t / 32;
  float sum = 0;
  for (int k = 0; k < 4; ++k) {
    if (t % 32 == 0) s[warp] = float(k);
    __syncthreads();
    sum += s[1 - warp];
  }
  out[t] = sum == 6.f;
}

__global__ void missing_syncwarp(float* out) {
  SHARED(float, s, [64]);
  const int t = threadIdx.x;
  s[t] = float(t);
  out[t] = s[t ^ 1] == float(t ^ 1);
}

// ---- not all threads reach the barrier

__global__ void divergent_if(float* out) {
  if (threadIdx.x < 16) __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void divergent_two(float* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

__global__ void early_return(float* out, int n) {
  if (int(threadIdx.x) >= n) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void loop_trip(float* out) {
  for (unsigned i = threadIdx.x; i < 96; i += blockDim.x) __syncthreads();
  out[threadIdx.x] = 1;
}

// ---- warp operations whose lanes do not meet

__global__ void shuffle_divergent(float* out) {
  float v = 1;
  if (threadIdx.x % 32 < 16) {
    v = __shfl_xor_sync(0xffffffffu, v, 1);
  } else {
    __syncwarp();
  }
  out[threadIdx.x] = v;
}

__global__ void shuffle_outside_mask(float* out) {
  float v = 1;
  if (threadIdx.x % 32 < 16) v += __shfl_xor_sync(0xffffu, v, 16);
  out[threadIdx.x] = v == v ? 1.f : 0.f;
}

__global__ void shuffle_bad_mask(float* out) { out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.f, 1); }

__global__ void shuffle_and_barrier(float* out) {
  float v = 1;
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    v = __shfl_xor_sync(0xffffffffu, v, 1);
  }
  out[threadIdx.x] = v;
}

// ---- clusters of two blocks

__global__ void missing_cluster_sync(float* out) {
  SHARED(float, s, [1]);
  const unsigned rank = cluster_rank();
  if (!threadIdx.x) s[0] = float(rank);
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = *cluster_shared(s, 1 - rank) == float(1 - rank);
  cluster_sync();
}

__global__ void block_has_returned(float* out) {  // no barrier after the last read
  SHARED(float, s, [1]);
  const unsigned rank = cluster_rank();
  if (!threadIdx.x) s[0] = float(rank);
  cluster_sync();
  const float* const other = cluster_shared(s, 1 - rank);
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = *other == float(1 - rank);
}

__global__ void divergent_cluster(float* out) {
  if (cluster_rank() == 0) cluster_sync();
  out[blockIdx.x * blockDim.x + threadIdx.x] = 1;
}

}  // namespace
