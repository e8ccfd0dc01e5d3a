// n of every m neighbours, and whole groups. A tile of blocks is read in order of memory into shared memory; a thread
// then ranks one block in registers, and the tile's mask is written in order of memory again. The zeros come last, by
// the mask: only then all know whether there was NaN.
#include "cover.cuh"
#include "topk_source.cuh"
#include "topk_threshold.h"

namespace sparse_accel::cuda {
namespace {

// Blocks of a tile: one per thread, unless their keys would not fit into 32 KB.
template <class Key, int M>
constexpr int kTileBlocks = kThreads * M * int(sizeof(Key)) <= 32768 ? kThreads : 32768 / (M * int(sizeof(Key)));

// A word more for every 32: threads that read their own blocks, m apart, meet different banks.
__device__ __forceinline__ int skewed(int i) { return i + i / 32; }

// Rows of `columns` in blocks of m, the last of a row maybe shorter.
struct Blocks {
  std::int64_t rows, columns, per_row;
  int m;

  __device__ __forceinline__ std::int64_t begin(std::int64_t block) const {
    const std::int64_t row = divide(block, per_row);
    return row * columns + (block - row * per_row) * m;
  }
};

// M >= m: a block's numbers are in registers, so loops over them are unrolled.
template <class Reader, int M>
__global__ void __launch_bounds__(kThreads)
    topk_blocks_kernel(Reader reader, bool* mask, Blocks blocks, int n, int* has_nan) {
  using Key = typename Reader::Key;
  constexpr int kTile = kTileBlocks<Key, M>;
  SHARED(Key, keys, [kTile * M + kTile * M / 32 + 1]);
  SHARED(bool, keep, [kTile * M]);
  const std::int64_t total = blocks.rows * blocks.per_row;
  const std::int64_t first = std::int64_t(blockIdx.x) * kTile;
  const std::int64_t last = first + kTile < total ? first + kTile : total;
  const std::int64_t begin = blocks.begin(first);
  const int count = int(blocks.begin(last) - begin);
  bool nan = false;
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const Keyed<Key> score = reader(begin + i);
    keys[skewed(i)] = score.key;
    nan |= score.nan;
  }
  if (nan) atomicOr(has_nan, 1);
  __syncthreads();
  if (first + threadIdx.x < last && int(threadIdx.x) < kTile) {
    const int own = int(blocks.begin(first + threadIdx.x) - begin);
    const int size = int(blocks.begin(first + threadIdx.x + 1) - begin) - own;
    Key key[M];
    int rank[M];
#pragma unroll
    for (int i = 0; i < M; ++i) {
      key[i] = i < size ? keys[skewed(own + i)] : Key(0);  // no number's key: before none
      rank[i] = 0;
    }
#pragma unroll
    for (int j = 1; j < M; ++j) {
#pragma unroll
      for (int i = 0; i < j; ++i) {
        const int later = key[j] > key[i];
        rank[i] += later;
        rank[j] += 1 - later;
      }
    }
#pragma unroll
    for (int i = 0; i < M; ++i) {
      if (i < size) keep[own + i] = rank[i] < n;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kThreads) mask[begin + i] = keep[i];
}

template <class Reader, int M>
void launch(const Reader& reader, const TopkTask& task, int n, int m, int* has_nan, cudaStream_t stream) {
  const Blocks blocks{task.count / task.columns, task.columns, ceil_div(task.columns, m), m};
  const std::int64_t tiles = ceil_div(blocks.rows * blocks.per_row, kTileBlocks<typename Reader::Key, M>);
  launch_kernel(topk_blocks_kernel<Reader, M>, unsigned(tiles), kThreads, 0, stream, reader, task.mask, blocks, n,
                has_nan);
}

// Elements in order of memory, each with its group's flag.
__global__ void __launch_bounds__(kThreads)
    topk_groups_kernel(Kept target, const bool* keep, GroupLayout layout, std::int64_t count) {
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const std::int64_t run = divide(i, layout.inner), row = divide(run, layout.groups);
  target.write(i, keep[divide(row, layout.outer) * layout.groups + (run - row * layout.groups)]);
}

}  // namespace

cudaError_t topk_blocks(const TopkTask& task, int n, int m, int* has_nan, cudaStream_t stream) {
  topk_clear(has_nan, stream);
  with_reader(task, [&](auto reader) {
    using Reader = decltype(reader);
    if (m <= 4) {
      launch<Reader, 4>(reader, task, n, m, has_nan, stream);
    } else if (m <= 8) {
      launch<Reader, 8>(reader, task, n, m, has_nan, stream);
    } else if (m <= 16) {
      launch<Reader, 16>(reader, task, n, m, has_nan, stream);
    } else {
      launch<Reader, 32>(reader, task, n, m, has_nan, stream);
    }
  });
  topk_zero(task, has_nan, stream);
  return cudaGetLastError();
}

cudaError_t topk_groups(void* x, int x_bytes, bool* mask, const bool* keep, GroupLayout layout, std::int64_t blocks,
                        cudaStream_t stream) {
  const std::int64_t count = blocks * layout.outer * layout.groups * layout.inner;
  launch_kernel(topk_groups_kernel, unsigned(ceil_div(count, kThreads)), kThreads, 0, stream, Kept(x, x_bytes, mask),
                keep, layout, count);
  return cudaGetLastError();
}

}  // namespace sparse_accel::cuda
