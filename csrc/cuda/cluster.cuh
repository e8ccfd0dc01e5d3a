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
#include "strip.cuh"

namespace sparse_accel::cuda {

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
