#pragma once
// How kernels are launched and declare shared memory: on the GPU here, on the CPU in tests/cuda_emulator.
// Kernels that keep to launch_kernel, SHARED and DYNAMIC_SHARED run unchanged in both.
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

// SHARED(float, tile, [8][33]) declares a static array of the block.
#define SHARED(T, name, dims) __shared__ T name dims
// DYNAMIC_SHARED(float, buffer) names the memory whose size the launch gives, as float*.
#define DYNAMIC_SHARED(T, name)                                          \
  extern __shared__ __align__(16) unsigned char dynamic_shared_memory[]; \
  T* const name = reinterpret_cast<T*>(dynamic_shared_memory)

// kernel<<<grid, block, shared, stream>>>(args...). Errors are left for cudaGetLastError.
template <class... Params, class... Args>
void launch_kernel(void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream,
                   Args&&... args) {
  kernel<<<grid, block, shared, stream>>>(static_cast<Params>(std::forward<Args>(args))...);
}
#else
#include "cuda_emulator.h"
#endif
