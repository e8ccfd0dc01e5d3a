#pragma once
// The part of cooperative_groups that kernels may use: blocks, and tiles of up to a warp.
#include "emu_device.h"

namespace cooperative_groups {

struct thread_block {
  void sync(EMU_SITE) const { __syncthreads(file, line); }
  EMU_FN unsigned thread_rank() const { return emu::engine.rank(); }
  EMU_FN unsigned size() const { return emu::engine.size(); }
  dim3 group_index() const { return dim3(blockIdx); }
};
inline thread_block this_thread_block() { return {}; }

template <unsigned N>
struct thread_block_tile {
  static_assert(N <= 32 && (N & (N - 1)) == 0, "tiles of up to one warp");

  unsigned mask() const { return unsigned(((1ull << N) - 1) << (emu::engine.lane() & ~(N - 1))); }
  unsigned thread_rank() const { return emu::engine.lane() % N; }
  static constexpr unsigned size() { return N; }
  EMU_FN unsigned meta_group_rank() const { return emu::engine.rank() / N; }
  EMU_FN unsigned meta_group_size() const { return (emu::engine.size() + N - 1) / N; }
  void sync(EMU_SITE) const { __syncwarp(mask(), file, line); }
  template <class T>
  T shfl(T value, int source, EMU_SITE) const {
    return __shfl_sync(mask(), value, source, N, file, line);
  }
  template <class T>
  T shfl_xor(T value, int other, EMU_SITE) const {
    return __shfl_xor_sync(mask(), value, other, N, file, line);
  }
  template <class T>
  T shfl_down(T value, unsigned delta, EMU_SITE) const {
    return __shfl_down_sync(mask(), value, delta, N, file, line);
  }
  template <class T>
  T shfl_up(T value, unsigned delta, EMU_SITE) const {
    return __shfl_up_sync(mask(), value, delta, N, file, line);
  }
  unsigned ballot(int predicate, EMU_SITE) const {
    return __ballot_sync(mask(), predicate, file, line) >> (emu::engine.lane() & ~(N - 1));
  }
  int any(int predicate, EMU_SITE) const { return __any_sync(mask(), predicate, file, line); }
  int all(int predicate, EMU_SITE) const { return __all_sync(mask(), predicate, file, line); }
};
template <unsigned N>
thread_block_tile<N> tiled_partition(const thread_block&) {
  return {};
}

}  // namespace cooperative_groups
