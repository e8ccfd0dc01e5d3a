#pragma once
// Groups in runs under a metric, read once and written once: x and P of a block's groups stay in shared memory between
// the pass that takes in the gradient and the one that writes W, and Newton's steps run there. Each thread reads back
// what it has written itself, so that nobody waits for the numbers, only for their sums.
//
// Up to kWarpGroup elements have a warp, or part of one: no barrier of the block, and a warp goes on when its own
// groups are done. Longer groups have the whole block, and one barrier for each step.
#include <vector>

#include "metric_root.cuh"

namespace sparse_accel::cuda {

constexpr int kWarpGroup = 1024;

// Sums over a team, in fixed order; every thread of it gets the result. The block's threads all take part.
// of_warp: kThreads / 32 places, not those of the last call.
__device__ __forceinline__ MetricSums metric_team_sum(MetricSums sums, int team, MetricSums* of_warp) {
  for (int step = (team < 32 ? team : 32) / 2; step > 0; step /= 2) {
    sums = sums + MetricSums{__shfl_xor_sync(0xffffffffu, sums.total, step),
                             __shfl_xor_sync(0xffffffffu, sums.slope, step),
                             __shfl_xor_sync(0xffffffffu, sums.bend, step)};
  }
  if (team <= 32) return sums;
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sums;
  __syncthreads();
  sums = of_warp[0];
#pragma unroll
  for (int warp = 1; warp < kThreads / 32; ++warp) sums = sums + of_warp[warp];
  return sums;
}

// staging: 2 numbers of each element of the block's groups.
template <int N, class T, MetricRule kRule>
__device__ __forceinline__ void metric_rows(const MetricTable<T>& table, const Spot& spot, Compute<T>* staging) {
  using A = Compute<T>;
  using Body = MetricBody<T, kRule>;
  const MetricEntry<T>& entry = table.entries[spot.entry];
  const MetricCover& cover = entry.cover;
  const MetricNow<A>& now = table.options.now[entry.tensor];
  SHARED(MetricSums, of_warp, [2][kThreads / 32]);
  const GroupLayout& layout = cover.layout;
  const int team = cover.team, shift = __ffs(team) - 1, size = int(layout.outer * layout.inner);
  const int slot = int(threadIdx.x) >> shift, begin = (int(threadIdx.x) & (team - 1)) * N, step = team * N;
  const std::int64_t group = std::int64_t(spot.block) * cover.per_block + slot;
  const bool active = group < layout.groups;
  A* const own_x = staging + slot * (2 * size);
  A* const own_p = own_x + size;

  // Where element i lies, from the group's first on. i + 1/2 over the run's length is so far from an integer that float
  // finds the row, for i below 2^22: no division of integers.
  const int skipped = layout.outer == 1 ? 0 : int(cover.columns() - layout.inner);  // from the end of a run to the next
  const float inverse = quick_divide(1.f, float(int(layout.inner)));
  const auto place = [&](int i) { return i + int((float(i) + 0.5f) * inverse) * skipped; };
  const std::int64_t start = spot.copy * cover.size() + group * layout.inner;

  if (active) {
    const Body body(entry, now, start);
    stream<Body::kPacks, int>(
        begin, size, step, place, [&](std::int64_t at) { return body.template load_first<N>(at); },
        [&](int i, std::int64_t at, const auto& loaded) {
          Pack<A, N> x, p;
          body.template first<N>(at, loaded, x, p);
          *reinterpret_cast<Pack<A, N>*>(own_x + i) = x;
          *reinterpret_cast<Pack<A, N>*>(own_p + i) = p;
        });
  }
  const MetricBound<A> bound(table.options.prox, now, cover.group_size());
  MetricSums sums{};
  if (active) {
#pragma unroll 1
    for (int i = begin; i < size; i += step) {  // not above: numbers on their way need the registers
      const Pack<A, N> x = *reinterpret_cast<const Pack<A, N>*>(own_x + i);
      const Pack<A, N> p = *reinterpret_cast<const Pack<A, N>*>(own_p + i);
#pragma unroll
      for (int k = 0; k < N; ++k) bound.add(x.value[k], p.value[k], sums);
    }
  }
  sums = metric_team_sum(sums, team, of_warp[1]);
  MetricState<A> state = metric_begin(bound, sums);
  if constexpr (sizeof(A) == 8) {
    block_reduce(0.f, Max());  // orders what the group's threads have put into shared memory
    if (active && state.scaled) {
      state.root.n = metric_norm_scaled(size, bound.bound, [&](std::int64_t i, double& x, double& p) {
        x = own_x[i];
        p = own_p[i];
      });
    }
  }
  for (int round = 0; round < kMetricSteps; ++round) {
    const bool busy = active && !state.root.done;  // the same for all threads of a team
    if (team > 32 ? !busy : !__any_sync(0xffffffffu, busy)) break;
    if (busy) {
      const A n = A(state.root.n * double(state.scale)), tau = A(bound.bound * double(state.scale));
      sums = metric_sums<N>(own_x, own_p, begin, size, step, n, tau, state.scale);
    }
    sums = metric_team_sum(sums, team, of_warp[round % 2]);
    if (busy) metric_advance<A>(state, sums);
  }
  if (!active) return;
  const Body body(entry, now, start);  // once more: its numbers need no registers in between
  Pack<A, N> n, tau;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    n.value[k] = A(state.root.n * double(state.scale));
    tau.value[k] = A(bound.bound * double(state.scale));
  }
  stream<Body::kPacks, int>(
      begin, size, step, place, [&](std::int64_t at) { return body.template load_last<N>(at); },
      [&](int i, std::int64_t at, const Pack<A, N>& param) {
        Pack<A, N> x = *reinterpret_cast<const Pack<A, N>*>(own_x + i);
        const Pack<A, N> p = *reinterpret_cast<const Pack<A, N>*>(own_p + i);
        bound.shrink(x, p, n, tau);
        body.template write<N>(at, x, param);
      });
}

template <class T, MetricRule kRule>
__global__ void __launch_bounds__(kThreads, kMetricBlocks<T>)
    metric_rows_kernel(const __grid_constant__ MetricTable<T> table) {
  const Overlap overlap;
  DYNAMIC_SHARED(Compute<T>, staging);
  const Spot spot = find_spot(table, [](const MetricEntry<T>& one) { return one.cover.copies; });
  const MetricEntry<T>& entry = table.entries[spot.entry];
  if (table.options.now[entry.tensor].skip) return;
  if (entry.cover.packed) {
    metric_rows<kMetricWidth<T>, T, kRule>(table, spot, staging);
  } else {
    metric_rows<1, T, kRule>(table, spot, staging);
  }
}

// The block's shared memory, by which launches are apart: four blocks on a multiprocessor, two, and one. The first
// needs no asking.
constexpr std::size_t kMetricShared[] = {48 << 10, 96 << 10};

// Host side: how blocks cover the rows, in how much shared memory; 0 bytes where x and P do not fit.
template <class T, MetricRule kRule>
class MetricRows {
 public:
  using A = Compute<T>;

  // False where the segment has no place here.
  bool add(MetricEntry<T> entry) {
    MetricCover& cover = entry.cover;
    if (cover.team == 0) return false;               // columns
    constexpr std::int64_t kMost = 1 << 20;          // elements: beyond any shared memory
    constexpr std::int64_t kMostPlace = 0x7fffffff;  // of an element in a copy
    const std::int64_t size = cover.layout.outer * cover.layout.inner;
    if (size > kMost || (cover.layout.outer > 1 && cover.size() > kMostPlace)) return false;
    cover.packed = cover.packed && cover.layout.inner % kMetricWidth<T> == 0;
    cover.team = size > kWarpGroup ? kThreads : power_of_two(ceil_div(size, kTeamElements), 32);
    cover.per_block = kThreads / cover.team;
    const std::size_t shared = 2 * sizeof(A) * std::size_t(size * cover.per_block);
    if (shared > kMetricShared[0] && shared > limit()) return false;
    Launch& launch = launches_[shared <= kMetricShared[0] ? 0 : shared <= kMetricShared[1] ? 1 : 2];
    if (launch.shared < shared) launch.shared = shared;
    launch.work.push_back({entry, cover.copies * ceil_div(cover.layout.groups, cover.per_block)});
    return true;
  }

  void run(const MetricOptions<T>& options, cudaStream_t stream, Overlapping& step) const {
    for (const Launch& launch : launches_) {
      launch_tables(metric_rows_kernel<T, kRule>, launch.work, options, launch.shared, stream, 0, &step);
    }
  }

 private:
  struct Launch {
    std::vector<Work<MetricEntry<T>>> work;
    std::size_t shared = 0;
  };

  // What blocks can have. Always asked for in whole: other threads may be about to launch.
  std::size_t limit() {
    constexpr std::size_t kOwn = 1 << 10;  // of the kernel
    if (limit_) return limit_;
    for (const std::size_t most : {227u << 10, 163u << 10, 99u << 10, 64u << 10}) {  // by compute capability
      if (allow_shared(metric_rows_kernel<T, kRule>, most - kOwn)) return limit_ = most - kOwn;
    }
    return limit_ = kMetricShared[0];
  }

  Launch launches_[3];
  std::size_t limit_ = 0;
};

}  // namespace sparse_accel::cuda
