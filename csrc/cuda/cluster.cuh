#pragma once
// Strided groups in one pass (shrink.cuh has the bodies and the plain way, of two). A cluster of blocks owns a strip of
// neighbouring columns, at least 128 bytes of x wide and of whole groups, over all rows. Every block has its share of
// the rows and keeps their x in shared memory; the columns' sums of squares go from block to block through distributed
// shared memory, in fixed order: every block finds the same bits, in every run. Then each shrinks what it keeps, and
// writes.
//
// Needs the clusters of compute capability 9.0, which the launcher asks the device for (cluster_limits), rows of whole
// 16-byte packs, and shared memory for the strip; all else takes the plain kernels. Few rows need a single block. Code
// for older cards has clusters of one block: it is compiled, held to the same table of registers, and not launched.
//
// What has an emulated twin: cluster_rank, cluster_size, cluster_sync, cluster_leave, cluster_shared, launch_cluster
// and cluster_limits of launch.cuh, whose real halves (intrinsics of sm_90, cudaLaunchKernelEx) are all that only a GPU
// runs. The kernel itself runs unchanged under the emulator, with clusters of up to eight blocks.
#include "shrink.cuh"

namespace sparse_accel::cuda {

constexpr int kStripBytes = 128;                 // of x: whole sectors of every array, a line of those in float
constexpr int kMaxStrip = 31 * kWidth<short>;    // columns: an odd run of kShortRun - 1 in packs of 8, or twice in 4
constexpr std::size_t kStripStaging = 48 << 10;  // bytes of shared memory: four blocks on a multiprocessor have them

// Packs side by side until a group ends with one, and a sector of 32 bytes: half of it would be fetched twice.
SPARSE_ACCEL_HOST_DEVICE int least_packs(std::int64_t inner, int width, int number) {
  int packs = int(inner);
  for (int w = width; w > 1 && packs % 2 == 0; w /= 2) packs /= 2;
  return packs * width * number % 32 == 0 ? packs : 2 * packs;
}

// The strips of a segment of short runs: what both sides of the launch know.
struct Strip {
  int packs;           // side by side; whole groups
  int rows;            // of a block; the last of a cluster may have fewer, or none
  std::int64_t count;  // strips

  // width: elements of a pack; number: bytes of one of x; blocks: of a cluster
  SPARSE_ACCEL_HOST_DEVICE Strip(const GroupLayout& layout, int width, int number, unsigned blocks) {
    const int least = least_packs(layout.inner, width, number);
    packs = int(ceil_div(kStripBytes / (width * number), least)) * least;
    rows = int(ceil_div(layout.outer, blocks));
    count = ceil_div(layout.groups * layout.inner, std::int64_t(packs) * width);
  }
};

// How a segment is cut, and whether it can be.
struct StripPlan {
  unsigned blocks = 0;     // of a cluster; 0: not in strips
  std::size_t shared = 0;  // bytes of each
  std::int64_t strips = 0;
};

inline StripPlan plan_strips(const Cover& cover, int width, int number, const ClusterLimits& limits) {
  if (!limits.blocks || cover.kind != CoverKind::columns || !cover.packed) return {};
  const std::int64_t kMost = std::int64_t(1) << 24;  // rows: beyond any shared memory
  if (cover.layout.outer > kMost) return {};
  // As few blocks as can be: they wait for each other.
  for (unsigned blocks = 1; blocks <= limits.blocks; blocks *= 2) {
    const Strip strip(cover.layout, width, number, blocks);
    const std::size_t shared = std::size_t(strip.rows) * std::size_t(strip.packs) * std::size_t(width * number);
    if (shared <= (blocks < limits.blocks ? kStripStaging : limits.shared)) return {blocks, shared, strip.count};
  }
  return {};
}

// Block b of a copy belongs to the strip b / cluster_size(). `staging` holds the block's rows of the strip.
template <int N, class Body, class A>
__device__ __forceinline__ double shrink_strip(const Body& body, const Target<A>& target, int block, A* staging) {
  SHARED(A, part, [kThreads * N]);  // each thread's sums; later the factors
  SHARED(A, sums, [kMaxStrip]);     // the block's, of every column: what other blocks read
  SHARED(A, totals, [kMaxStrip]);   // the cluster's
  const GroupLayout& layout = target.cover.layout;
  const unsigned rank = cluster_rank(), blocks = cluster_size();
  const Strip strip(layout, N, int(sizeof(A)), blocks);
  const int width = strip.packs * N, lines = kThreads / strip.packs;
  const int line = int(threadIdx.x) / strip.packs, own = (int(threadIdx.x) - line * strip.packs) * N;
  const std::int64_t columns = layout.groups * layout.inner, first_column = block / int(blocks) * std::int64_t(width);
  const std::int64_t first_row = std::int64_t(rank) * strip.rows, left = layout.outer - first_row;
  const bool active = line < lines && first_column + own < columns;
  const int rows = !active || left < 0 ? 0 : left < strip.rows ? int(left) : strip.rows;
  const std::int64_t start = first_row * columns + first_column + own;
  const auto place = [&](int row) { return start + row * columns; };

  Pack<A, N> sum{};
  stream<Body::kPacks, int>(
      line, rows, lines, place, [&](std::int64_t at) { return body.template load_first<N>(at); },
      [&](int row, std::int64_t at, const auto& loaded) {
        const Pack<A, N> x = body.template first<N>(at, loaded);
        *reinterpret_cast<Pack<A, N>*>(staging + row * width + own) = x;
#pragma unroll
        for (int k = 0; k < N; ++k) sum.value[k] += x.value[k] * x.value[k];
      });
  *reinterpret_cast<Pack<A, N>*>(part + threadIdx.x * N) = sum;
  __syncthreads();
  const int c = int(threadIdx.x);
  if (c < width) {
    A total = part[c];
    for (int other = 1; other < lines; ++other) total += part[other * width + c];
    sums[c] = total;
  }
  cluster_sync();
  if (c < width) {
    A total = A(0);
    for (unsigned other = 0; other < blocks; ++other) total += cluster_shared(sums, other)[c];
    totals[c] = total;
  }
  __syncthreads();
  const int inner = int(layout.inner);
  const A size = A(target.cover.group_size());
  double value = 0;
  if (c * inner < width) {
    A square = A(0);
    for (int i = 0; i < inner; ++i) square += totals[c * inner + i];
    part[c] = prox_scale(body.prox, square, body.tau, size);
    if (target.values && rank == 0 && first_column + c * inner < columns) {
      value = double(penalty_value(body.prox, square, part[c], size));
    }
  }
  __syncthreads();
  Pack<A, N> factor;
#pragma unroll
  for (int k = 0; k < N; ++k) factor.value[k] = active ? part[(own + k) / inner] : A(0);
  stream<Body::kPacks, int>(  // the thread's own elements: no barrier
      line, rows, lines, place, [&](std::int64_t at) { return body.template load_last<N>(at); },
      [&](int row, std::int64_t at, const auto& loaded) {
        const Pack<A, N> x = *reinterpret_cast<const Pack<A, N>*>(staging + row * width + own);
        body.template write<N>(at, scaled(x, factor), loaded);
      });
  cluster_leave();  // not while others may read the sums
  return value;
}

template <class Body>
__global__ void __launch_bounds__(kThreads, kBlocks)
    shrink_strips_kernel(const __grid_constant__ BodyTable<Body> table) {
  using A = Compute<typename Body::Element>;
  const Overlap overlap;
  DYNAMIC_SHARED(A, staging);
  const Spot spot = shrink_spot<Body>(table);
  const auto& target = table.entries[spot.entry].target;
  const Body body = shrink_body<Body>(table, spot);
  if (body.skip()) return;  // the whole cluster does
  write_value(table, spot, shrink_strip<kWidth<typename Body::Element>>(body, target, spot.block, staging));
}

}  // namespace sparse_accel::cuda
