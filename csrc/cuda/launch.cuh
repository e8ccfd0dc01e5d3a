#pragma once
// How kernels are launched, declare shared memory and work in clusters: on the GPU here, on the CPU in
// tests/cuda_emulator. Kernels that keep to what is here run unchanged in both.
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <atomic>
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

// ---- clusters: blocks that run at the same time and read each other's shared memory (compute capability 9.0). Code
// for older cards knows one kind of cluster, a block on its own.

// The block's place in its cluster, and the cluster's blocks.
__device__ __forceinline__ unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  return __clusterRelativeBlockRank();
#else
  return 0;
#endif
}
__device__ __forceinline__ unsigned cluster_size() {
#if __CUDA_ARCH__ >= 900
  return __clusterSizeInBlocks();
#else
  return 1;
#endif
}
// The barrier of all threads of all blocks, which orders what they write to shared memory, and that alone: it need not
// wait until stores to global memory have arrived.
__device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900 && CUDART_VERSION >= 12080
  asm volatile("fence.release.sync_restrict::shared::cta.cluster;" ::: "memory");
  __cluster_barrier_arrive_relaxed();
  __cluster_barrier_wait();
  asm volatile("fence.acquire.sync_restrict::shared::cluster.cluster;" ::: "memory");
#elif __CUDA_ARCH__ >= 900
  __cluster_barrier_arrive();  // releases
  __cluster_barrier_wait();    // acquires
#else
  __syncthreads();
#endif
}
// The barrier before a block returns, whose shared memory others have read: orders nothing, and so waits for no store.
__device__ __forceinline__ void cluster_leave() {
#if __CUDA_ARCH__ >= 900
  __cluster_barrier_arrive_relaxed();
  __cluster_barrier_wait();
#endif
}
// Where the block of that rank has what the calling one has at `own`: there from a cluster_sync() that the other block
// has reached, and only until it returns.
template <class T>
__device__ __forceinline__ T* cluster_shared(T* own, [[maybe_unused]] unsigned rank) {
#if __CUDA_ARCH__ >= 900
  return static_cast<T*>(__cluster_map_shared_rank(own, rank));
#else
  return own;
#endif
}

// ---- launches of one op that overlap (programmatic dependent launch, compute capability 9.0). Kernels that write what
// none of the others reads or writes have one of these as their first object. From its beginning on the next launch may
// start, once all blocks of this one have; at its end the grid's last block waits for the launches before. So whoever
// waits for this launch, waits for them all.
class Overlap {
 public:
  __device__ __forceinline__ Overlap() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
  }
  __device__ __forceinline__ ~Overlap() {
#if __CUDA_ARCH__ >= 900
    if (blockIdx.x + 1 == gridDim.x) asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  }
  Overlap(const Overlap&) = delete;
  Overlap& operator=(const Overlap&) = delete;
};

// Whether the current device lets launches overlap.
inline bool device_overlaps() {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];  // compute capability
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return (void)cudaGetLastError(), false;
  int major = known[device].load();
  if (!major) {
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) {
      return (void)cudaGetLastError(), false;
    }
    known[device].store(major);
  }
  return major >= 9;
}

// launch_kernel in clusters of so many neighbouring blocks (0: of none), of which the grid is a multiple. overlap: it
// may start while the launch before it, of a kernel with an Overlap, still runs.
template <class... Params, class... Args>
void launch_cluster(void (*kernel)(Params...), dim3 grid, dim3 block, unsigned cluster, std::size_t shared,
                    cudaStream_t stream, bool overlap, Args&&... args) {
  cudaLaunchAttribute attributes[2]{};
  unsigned count = 0;
  if (cluster) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = cluster;
    attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  if (overlap && device_overlaps()) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count].val.programmaticStreamSerializationAllowed = 1;
    ++count;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  (void)cudaLaunchKernelEx(&config, kernel, static_cast<Params>(std::forward<Args>(args))...);
}

// What the current device offers launches of a kernel in clusters: blocks in one (0: no clusters), and bytes of dynamic
// shared memory in each of its blocks.
struct ClusterLimits {
  unsigned blocks;
  std::size_t shared;
};

// Asks the driver: code that was compiled for an older card has no clusters on a newer one either.
template <class Kernel>
ClusterLimits find_cluster_limits(Kernel kernel, int device) {
  constexpr unsigned kPortable = 8;  // what every such card has
  int clusters = 0, most = 0, fitting = 0;
  cudaFuncAttributes attributes{};
  const bool known = cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess &&
                     cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)) == cudaSuccess;
  if (!known) (void)cudaGetLastError();  // dealt with
  if (!known || !clusters || attributes.ptxVersion < 90 || most <= int(attributes.sharedSizeBytes)) return {0, 0};
  const std::size_t shared = std::size_t(most) - attributes.sharedSizeBytes;
  if (!allow_shared(kernel, shared)) return {0, 0};
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = kPortable;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = kPortable;
  config.blockDim = 256;
  config.dynamicSmemBytes = shared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  const bool fits = cudaOccupancyMaxActiveClusters(&fitting, kernel, &config) == cudaSuccess && fitting > 0;
  if (!fits) (void)cudaGetLastError();
  return fits ? ClusterLimits{kPortable, shared} : ClusterLimits{0, 0};
}

// The same, asked once for each kernel and device.
template <auto kKernel>
ClusterLimits cluster_limits() {
  constexpr int kDevices = 64;
  constexpr std::size_t kKnown = std::size_t(1) << 32;
  static std::atomic<std::size_t> found[kDevices];  // kKnown, blocks << 24, bytes
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return (void)cudaGetLastError(), ClusterLimits{0, 0};
  if (device >= kDevices) return find_cluster_limits(kKernel, device);
  std::size_t packed = found[device].load();
  if (!packed) {
    const ClusterLimits limits = find_cluster_limits(kKernel, device);
    packed = kKnown | std::size_t(limits.blocks) << 24 | limits.shared;
    found[device].store(packed);
  }
  return {unsigned(packed >> 24 & 0xff), packed & 0xffffff};
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
