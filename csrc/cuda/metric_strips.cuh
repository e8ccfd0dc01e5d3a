#pragma once
// Strided groups under a metric, read once and written once, where blocks form clusters (cluster.cuh says how and
// when). A cluster owns a strip of whole groups over all rows; every block keeps x and P of its share of the rows in
// shared memory. The groups' sums go from block to block through distributed shared memory, in fixed order: every block
// finds the same bits, takes the same step of Newton, and knows by itself when the strip's groups are done.
//
// Threads share the work in two ways. What moves through global memory moves in packs, a warp on a few rows. For sums
// a thread has one column: few registers, little scratch for the block.
#include <vector>

#include "metric_root.cuh"
#include "strip.cuh"

namespace sparse_accel::cuda {

constexpr int kMetricStrip = 31 * kWidth<float>;  // columns: an odd run of kShortRun - 1 in packs of 4
constexpr int kMetricStripGroups = 32;            // groups: a warp for each of their sums
constexpr unsigned kMetricCluster = 8;            // blocks

// Block b of a copy belongs to the strip b / cluster_size(). staging: x, then P, of the block's rows.
template <int N, class T, MetricRule kRule>
__device__ __forceinline__ void metric_strip(const MetricTable<T>& table, const Spot& spot, Compute<T>* staging) {
  using A = Compute<T>;
  using Body = MetricBody<T, kRule>;
  SHARED(double, part, [3][kThreads]);               // each thread's sums
  SHARED(double, sums, [2][3][kMetricStripGroups]);  // the block's: others read the one half while it writes the other
  SHARED(double, totals, [3][kMetricStripGroups]);   // the cluster's
  SHARED(A, norms, [kMetricStrip]);                  // of every column's group
  SHARED(A, scales, [kMetricStrip]);                 // the same: see MetricState
  const MetricEntry<T>& entry = table.entries[spot.entry];
  const MetricCover& cover = entry.cover;
  const GroupLayout& layout = cover.layout;
  const MetricNow<A>& now = table.options.now[entry.tensor];
  const unsigned blocks = cluster_size();
  const int inner = int(layout.inner), width = cover.per_block * inner, thread = int(threadIdx.x);
  const std::int64_t first_group = spot.block / int(blocks) * std::int64_t(cover.per_block);
  const int share = int(ceil_div(layout.outer, blocks));
  const int first_row = int(cluster_rank()) * share, rows_left = int(layout.outer) - first_row;
  const int rows = rows_left < 0 ? 0 : rows_left < share ? rows_left : share;
  A* const of_x = staging;
  A* const of_p = staging + share * width;

  const int stride = int(cover.columns());
  const auto place = [&](int row) { return row * std::int64_t(stride); };
  {
    const int packs = width / N, pack_lines = kThreads / packs, pack_line = thread / packs;
    const int own = (thread - pack_line * packs) * N;
    const Body body(entry, now,
                    spot.copy * cover.size() + (first_row * std::int64_t(stride) + first_group * inner) + own);
    stream<Body::kPacks, int>(
        pack_line, pack_line < pack_lines && first_group * inner + own < stride ? rows : 0, pack_lines, place,
        [&](std::int64_t at) { return body.template load_first<N>(at); },
        [&](int row, std::int64_t at, const auto& loaded) {
          Pack<A, N> x, p;
          body.template first<N>(at, loaded, x, p);
          *reinterpret_cast<Pack<A, N>*>(of_x + row * width + own) = x;
          *reinterpret_cast<Pack<A, N>*>(of_p + row * width + own) = p;
        });
  }
  __syncthreads();

  const std::int64_t groups_left = layout.groups - first_group;
  const int groups = groups_left < cover.per_block ? int(groups_left) : cover.per_block, columns = groups * inner;
  const int lines = kThreads / width, line = thread / width, column = thread - line * width;
  const bool active = line < lines && column < columns;
  const int end = active ? rows * width : 0, step = lines * width;
  const int which = thread / kMetricStripGroups, of_group = thread % kMetricStripGroups;
  const bool adds = which < 3 && of_group < groups;
  const auto add = [&](const MetricSums& of_thread, double* of_block) {
    part[0][thread] = of_thread.total;
    part[1][thread] = of_thread.slope;
    part[2][thread] = of_thread.bend;
    __syncthreads();
    if (adds) {
      double sum = 0;
      for (int i = 0; i < inner; ++i) {
        const double* const from = part[which] + of_group * inner + i;
#pragma unroll 4
        for (int k = 0; k < lines; ++k) sum += from[k * width];
      }
      of_block[thread] = sum;
    }
    cluster_sync();
    if (adds) {  // their latency is the cost: all on their way before the first is used
      double of_blocks[kMetricCluster];
#pragma unroll
      for (unsigned k = 0; k < kMetricCluster; ++k) {
        of_blocks[k] = k < blocks ? cluster_shared(of_block, k)[thread] : 0;
      }
      double total = of_blocks[0];
#pragma unroll
      for (unsigned k = 1; k < kMetricCluster; ++k) total += of_blocks[k];
      totals[which][of_group] = total;
    }
    __syncthreads();
  };

  const MetricBound<A> bound(table.options.prox, now, cover.group_size());
  MetricSums found{};
  for (int i = thread; i < end; i += step) bound.add(of_x[i], of_p[i], found);
  add(found, &sums[1][0][0]);
  const bool leads = thread < groups;
  MetricState<A> state{{0, 0, true}, A(1), false};
  if (leads) {
    state = metric_begin(bound, MetricSums{totals[0][thread], totals[1][thread], totals[2][thread]});
    if (sizeof(A) == 8 && state.scaled) {
      const int size = int(layout.outer) * inner;
      state.root.n = metric_norm_scaled(size, bound.bound, [&](std::int64_t i, double& x, double& p) {
        const int row = int(i) / inner, owner = row / share;
        const int place = (row - owner * share) * width + thread * inner + (int(i) - row * inner);
        x = cluster_shared(of_x, unsigned(owner))[place];
        p = cluster_shared(of_p, unsigned(owner))[place];
      });
    }
  }
  for (int round = 0;; ++round) {
    if (leads) {
      for (int i = 0; i < inner; ++i) norms[thread * inner + i] = A(state.root.n);
      for (int i = 0; i < inner && round == 0; ++i) scales[thread * inner + i] = state.scale;
    }
    if (!__syncthreads_or(leads && !state.root.done) || round == kMetricSteps) break;  // all of the cluster do
    const A scale = active ? scales[column] : A(0), n = active ? norms[column] * scale : A(0);
    found = metric_sums<1>(of_x, of_p, thread, end, step, n, A(bound.bound * double(scale)), scale);
    add(found, &sums[round % 2][0][0]);
    if (leads && !state.root.done) {
      metric_advance<A>(state, MetricSums{totals[0][thread], totals[1][thread], totals[2][thread]});
    }
  }
  // The thread's own packs once more; worked out in another way, or the compiler would keep it all in registers.
  const int pack_line = thread * N / width, own = thread * N - pack_line * width, pack_lines = kThreads * N / width;
  const int pack_rows = pack_line < pack_lines && own < columns ? rows : 0;
  const Body body(entry, now, (spot.copy * layout.outer + first_row) * stride + (first_group * inner + own));
  Pack<A, N> n{}, tau{};
#pragma unroll
  for (int k = 0; k < N && pack_rows; ++k) {
    n.value[k] = norms[own + k] * scales[own + k];
    tau.value[k] = A(bound.bound * double(scales[own + k]));
  }
  stream<Body::kPacks, int>(
      pack_line, pack_rows, pack_lines, place, [&](std::int64_t at) { return body.template load_last<N>(at); },
      [&](int row, std::int64_t at, const Pack<A, N>& param) {
        Pack<A, N> x = *reinterpret_cast<const Pack<A, N>*>(of_x + row * width + own);
        const Pack<A, N> p = *reinterpret_cast<const Pack<A, N>*>(of_p + row * width + own);
        bound.shrink(x, p, n, tau);
        body.template write<N>(at, x, param);
      });
  cluster_leave();  // not while others may read the sums
}

template <class T, MetricRule kRule>
__global__ void __launch_bounds__(kThreads, kMetricBlocks<T>)
    metric_strips_kernel(const __grid_constant__ MetricTable<T> table) {
  const Overlap overlap;
  DYNAMIC_SHARED(Compute<T>, staging);
  const Spot spot = find_spot(table, [](const MetricEntry<T>& one) { return one.cover.copies; });
  const MetricEntry<T>& entry = table.entries[spot.entry];
  if (table.options.now[entry.tensor].skip) return;  // the whole cluster does
  metric_strip<kMetricWidth<T>, T, kRule>(table, spot, staging);
}

// Host side: which segments are cut into strips, and how.
template <class T, MetricRule kRule>
class MetricStrips {
 public:
  using A = Compute<T>;

  // False where the segment has no place here.
  bool add(MetricEntry<T> entry) {
    constexpr std::int64_t kMost = 1 << 24;  // rows: beyond any shared memory
    constexpr int kPack = kMetricWidth<T>;
    MetricCover& cover = entry.cover;
    if (cover.team != 0 || !cover.packed || cover.columns() % kPack != 0 || cover.layout.outer > kMost ||
        cover.columns() > 0x7fffffff)
      return false;
    const ClusterLimits limits = cluster_limits<metric_strips_kernel<T, kRule>>();
    if (!limits.blocks || limits.blocks > kMetricCluster) return false;
    const int inner = int(cover.layout.inner);
    int least = inner;  // packs until a group and a pack end together
    for (int w = kPack; w > 1 && least % 2 == 0; w /= 2) least /= 2;
    // By what a row has of x in a strip: a line of memory, half of one where clusters would be too few, a sector.
    for (const int bytes : {kStripBytes, kStripBytes / 2, kStripBytes / 4}) {
      const std::int64_t groups = ceil_div(bytes / (kPack * int(sizeof(A))), least) * least * kPack / inner;
      cover.per_block = int(groups < cover.layout.groups ? groups : cover.layout.groups);
      for (const unsigned blocks : {1u, limits.blocks}) {
        const std::size_t shared =
            2 * sizeof(A) * std::size_t(ceil_div(cover.layout.outer, blocks)) * std::size_t(cover.per_block * inner);
        const std::size_t most = blocks == 1 ? kStagingBytes : bytes == kStripBytes ? kThree : limits.shared;
        if (shared > most) continue;
        Launch& launch = launches_[blocks == 1 ? 0 : shared <= kStagingBytes ? 1 : shared <= kThree ? 2 : 3];
        launch.blocks = blocks;
        if (launch.shared < shared) launch.shared = shared;
        launch.work.push_back({entry, cover.copies * ceil_div(cover.layout.groups, cover.per_block) * blocks});
        return true;
      }
    }
    return false;
  }

  void run(const MetricOptions<T>& options, cudaStream_t stream, Overlapping& step) const {
    for (const Launch& launch : launches_) {
      launch_tables(metric_strips_kernel<T, kRule>, launch.work, options, launch.shared, stream, launch.blocks, &step);
    }
  }

 private:
  static constexpr std::size_t kThree = 65 << 10;  // of which three blocks fit on a multiprocessor, beside their own
  // Blocks on their own, clusters that need little shared memory, more, and most of it: so that none holds others up.
  struct Launch {
    std::vector<Work<MetricEntry<T>>> work;
    std::size_t shared = 0;
    unsigned blocks = 1;  // of a cluster
  };
  Launch launches_[4];
};

}  // namespace sparse_accel::cuda
