#pragma once
// What host code calls: launches, and the little of the runtime API that tests use. "Device" memory is host
// memory of the exact size (so that sanitizers see its ends) and holds NaN until it is written.
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda_types.h"
#include "emu_engine.h"

// One after another here: launches that may overlap do as well.
class Overlap {
 public:
  EMU_FN Overlap() {}
};

template <class... Params, class... Args>
void launch_cluster(void (*kernel)(Params...), dim3 grid, dim3 block, unsigned cluster, std::size_t shared,
                    cudaStream_t, bool, Args&&... args) {
  static_assert((std::is_trivially_copyable<Params>::value && ...), "kernel parameters are copied bytewise");
  static_assert((sizeof(Params) + ... + 0) <= 4096, "kernel parameters: keep within 4 KB");
  std::tuple<Params...> params(static_cast<Params>(std::forward<Args>(args))...);
  auto call = [&] { std::apply(kernel, params); };  // copies the parameters for each thread
  emu::engine.run(grid, block, cluster, shared, [](void* self) { (*static_cast<decltype(call)*>(self))(); }, &call);
}

template <class... Params, class... Args>
void launch_kernel(void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream,
                   Args&&... args) {
  launch_cluster(kernel, grid, block, 0, shared, stream, false, std::forward<Args>(args)...);
}

// As the real one's answer (launch.cuh): the device is that of config.clusters, the kernel's own shared memory 16 KB.
struct ClusterLimits {
  unsigned blocks;
  std::size_t shared;
};
template <auto kKernel>
ClusterLimits cluster_limits() {
  return {emu::config.clusters, 227 * 1024 - 16 * 1024};
}

template <class Kernel>
bool allow_shared(Kernel, std::size_t bytes) {
  return bytes <= 227 * 1024;
}

inline cudaError_t cudaMalloc(void** p, std::size_t size) {
  if (posix_memalign(p, 256, size ? size : 1)) return cudaErrorMemoryAllocation;
  std::memset(*p, 0xFF, size);
  return cudaSuccess;
}
template <class T>
cudaError_t cudaMalloc(T** p, std::size_t size) {
  return cudaMalloc(reinterpret_cast<void**>(p), size);
}
inline cudaError_t cudaFree(void* p) {
  std::free(p);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind,
                                   cudaStream_t = nullptr) {
  std::memcpy(to, from, size);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t size, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, size, kind);
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t size, cudaStream_t = nullptr) {
  std::memset(to, value, size);
  return cudaSuccess;
}
inline cudaError_t cudaMemset(void* to, int value, std::size_t size) { return cudaMemsetAsync(to, value, size); }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
