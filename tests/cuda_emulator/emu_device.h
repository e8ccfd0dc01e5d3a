#pragma once
// What kernels call. A function that is missing here is one that kernels of this project do not use yet.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emu_engine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define __shared__ static  // works, but SHARED is better: poisoned per block, red zones, known to the race check
#define __constant__ static

#define SHARED(T, name, dims)                           \
  static ::emu::SharedArray name##_emu{sizeof(T dims)}; \
  using name##_emu_type = T dims;                       \
  name##_emu_type& name = *static_cast<name##_emu_type*>(name##_emu.get())
#define DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(::emu::engine.dynamic_shared())

// Barriers and warp operations know where they were called: threads must meet at the same line.
#define EMU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace emu {
template <class T>
std::int64_t bits(T value) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "4- or 8-byte values only");
  std::int64_t out = 0;
  std::memcpy(&out, &value, sizeof value);
  return out;
}
template <class T>
T unbits(std::int64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <class T>
T shuffle_from(unsigned mask, T value, unsigned source, const char* file, int line) {
  return unbits<T>(engine.warp_wait(shuffle, 0, mask, bits(value), source, file, line));
}
}  // namespace emu

// ---- barriers, votes, shuffles
inline void __syncthreads(EMU_SITE) {
  if (!emu::config.skips(file, line)) emu::engine.barrier_wait(false, emu::count_true, file, line);
}
inline int __syncthreads_count(int p, EMU_SITE) { return emu::engine.barrier_wait(p, emu::count_true, file, line); }
inline int __syncthreads_and(int p, EMU_SITE) { return emu::engine.barrier_wait(p, emu::all_true, file, line); }
inline int __syncthreads_or(int p, EMU_SITE) { return emu::engine.barrier_wait(p, emu::any_true, file, line); }
// Of a cluster's blocks (launch.cuh).
inline EMU_FN unsigned cluster_rank() { return emu::engine.block_rank(); }
inline EMU_FN unsigned cluster_size() { return emu::engine.cluster_size(); }
inline void cluster_sync(EMU_SITE) {
  if (!emu::config.skips(file, line)) emu::engine.cluster_wait(file, line);
}
inline void cluster_leave(EMU_SITE) {
  if (!emu::config.skips(file, line)) emu::engine.cluster_wait(file, line);
}
template <class T>
T* cluster_shared(T* own, unsigned rank, EMU_SITE) {
  return reinterpret_cast<T*>(emu::engine.map_shared(own, rank, file, line));
}
inline void __syncwarp(unsigned mask = ~0u, EMU_SITE) {
  if (!emu::config.skips(file, line)) emu::engine.warp_wait(emu::syncwarp, 0, mask, 0, 0, file, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_SITE) {
  return unsigned(emu::engine.warp_wait(emu::vote, 0, mask, predicate != 0, 0, file, line));
}
inline int __any_sync(unsigned mask, int predicate, EMU_SITE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMU_SITE) {
  return __ballot_sync(mask, !predicate, file, line) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, EMU_SITE) {
  return unsigned(emu::engine.warp_wait(emu::match, 0, mask, emu::bits(value), 0, file, line));
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_SITE) {
  const unsigned lane = emu::engine.lane();
  return emu::shuffle_from(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), file, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int other, int width = 32, EMU_SITE) {
  const unsigned lane = emu::engine.lane(), source = lane ^ other;
  const bool outside = (source & ~(width - 1)) > (lane & ~(width - 1)) || source > 31;
  return emu::shuffle_from(mask, value, outside ? lane : source, file, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_SITE) {
  const unsigned lane = emu::engine.lane();
  const bool outside = (lane & (width - 1)) + delta >= unsigned(width);
  return emu::shuffle_from(mask, value, outside ? lane : lane + delta, file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_SITE) {
  const unsigned lane = emu::engine.lane();
  return emu::shuffle_from(mask, value, (lane & (width - 1)) < delta ? lane : lane - delta, file, line);
}
template <class T>
T __reduce_add_sync(unsigned mask, T value, EMU_SITE) {
  return T(emu::engine.warp_wait(emu::reduce, emu::reduce_add, mask, value, 0, file, line));
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, EMU_SITE) {
  return T(emu::engine.warp_wait(emu::reduce, emu::reduce_min, mask, value, 0, file, line));
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, EMU_SITE) {
  return T(emu::engine.warp_wait(emu::reduce, emu::reduce_max, mask, value, 0, file, line));
}

// ---- fences and atomics. Race check: after a fence, a thread's atomics publish what it wrote before.
inline EMU_FN void __threadfence(EMU_SITE) {
  if (!emu::config.skips(file, line)) emu::engine.fence();
}
inline EMU_FN void __threadfence_block(EMU_SITE) { __threadfence(file, line); }

namespace emu {
EMU_TSAN(inline EMU_FN void publish(void* p) {
  if (engine.fenced()) __tsan_release(p);
})

template <class T>
using NotDeduced = typename std::enable_if<true, T>::type;

// A real atomic instruction, so that ThreadSanitizer sees it as one.
template <class T, class Function>
T atomic(T* p, Function function) {
  typedef std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t> Word __attribute__((may_alias));
  static_assert(sizeof(T) == sizeof(Word), "4- and 8-byte atomics only");
  EMU_TSAN(publish(p));
  Word* const word = reinterpret_cast<Word*>(p);
  Word old_word = __atomic_load_n(word, __ATOMIC_RELAXED), new_word;
  T old_value;
  do {
    std::memcpy(&old_value, &old_word, sizeof old_value);
    const T new_value = function(old_value);
    std::memcpy(&new_word, &new_value, sizeof new_value);
  } while (!__atomic_compare_exchange_n(word, &old_word, new_word, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  EMU_TSAN(__tsan_acquire(p));
  return old_value;
}
}  // namespace emu

template <class T>
T atomicAdd(T* p, emu::NotDeduced<T> v) {
  static_assert(!(std::is_signed<T>::value && std::is_integral<T>::value && sizeof(T) == 8), "CUDA has none for int64");
  return emu::atomic(p, [=](T old) -> T { return old + v; });
}
template <class T>
T atomicMax(T* p, emu::NotDeduced<T> v) {
  static_assert(std::is_integral<T>::value, "CUDA has it for integers only");
  return emu::atomic(p, [=](T old) -> T { return old > v ? old : v; });
}
template <class T>
T atomicMin(T* p, emu::NotDeduced<T> v) {
  static_assert(std::is_integral<T>::value, "CUDA has it for integers only");
  return emu::atomic(p, [=](T old) -> T { return old < v ? old : v; });
}
template <class T>
T atomicOr(T* p, emu::NotDeduced<T> v) {
  static_assert(std::is_integral<T>::value, "CUDA has it for integers only");
  return emu::atomic(p, [=](T old) -> T { return old | v; });
}
template <class T>
T atomicAnd(T* p, emu::NotDeduced<T> v) {
  static_assert(std::is_integral<T>::value, "CUDA has it for integers only");
  return emu::atomic(p, [=](T old) -> T { return old & v; });
}
template <class T>
T atomicExch(T* p, emu::NotDeduced<T> v) {
  return emu::atomic(p, [=](T) -> T { return v; });
}
template <class T>
T atomicCAS(T* p, emu::NotDeduced<T> expected, emu::NotDeduced<T> v) {
  return emu::atomic(p, [=](T old) -> T { return old == expected ? v : old; });
}

// ---- loads, bit casts, arithmetic
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
void store_word(T* p, T v) {
  *p = v;
}
inline unsigned __float_as_uint(float v) { return unsigned(emu::bits(v)); }
inline float __uint_as_float(unsigned v) { return emu::unbits<float>(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline int __ffs(int v) { return __builtin_ffs(v); }
template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
