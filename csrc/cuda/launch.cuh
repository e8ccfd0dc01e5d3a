#pragma once
// How kernels are launched and declare shared memory: on the GPU here, on the CPU in tests/cuda_emulator.
// Kernels that keep to launch_kernel, SHARED and DYNAMIC_SHARED run unchanged in both.
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

// SHARED(float, tile, [8][33]) declares a static array of the block, aligned for 16-byte accesses.
#define SHARED(T, name, dims) __shared__ __align__(16) T name dims
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

// Lets a kernel's launches ask for up to so many bytes of dynamic shared memory, beyond the 48 KB that need no asking.
// False where the device has less.
template <class Kernel>
bool allow_shared(Kernel kernel, std::size_t bytes) {
  const auto size = cudaFuncAttributeMaxDynamicSharedMemorySize;
  const bool allowed = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), size, int(bytes)) == cudaSuccess;
  if (!allowed) (void)cudaGetLastError();  // dealt with
  return allowed;
}

// One store of the word's width: the compiler may take a plain one of 16 or 8 bytes apart. It is an access to memory in
// the compiler's eyes as well, which moves no load across it: kernels load what they need first.
template <class Word>
__device__ __forceinline__ void store_word(Word* to, Word word) {
  *to = word;
}
__device__ __forceinline__ void store_word(uint4* to, uint4 word) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(word.x), "r"(word.y),
               "r"(word.z), "r"(word.w)
               : "memory");
}
__device__ __forceinline__ void store_word(uint2* to, uint2 word) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(word.x), "r"(word.y)
               : "memory");
}
#else
#include "cuda_emulator.h"
#endif
