#pragma once
// Reductions in fixed order: the same numbers give the same bits, on every run.
#include "../math.h"
#include "cover.cuh"
#include "vec.cuh"

namespace sparse_accel::cuda {

struct Add {
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return a + b;
  }
};

// Of magnitudes: 0 is neutral, NaN stays.
struct Max {
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return a > b || a != a ? a : b;
  }
};

// Over the first `team` lanes that share a warp (a power of two, aligned); every lane gets the result.
// All lanes of the warp take part.
template <class A, class Combine>
__device__ __forceinline__ A warp_reduce(A x, int team, Combine combine) {
  for (int step = team / 2; step > 0; step /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

// Over the whole block; every thread gets the result. All threads take part.
template <class A, class Combine>
__device__ A block_reduce(A x, Combine combine) {
  SHARED(A, of_warp, [kThreads / 32]);
  const int lane = threadIdx.x % 32;
  x = warp_reduce(x, 32, combine);
  __syncthreads();  // the last call's result has been read
  if (lane == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  return warp_reduce(of_warp[lane % (kThreads / 32)], kThreads / 32, combine);
}

// Over a team: part of a warp, or the whole block. `team` is the same for all threads of the block.
template <class A, class Combine>
__device__ __forceinline__ A team_reduce(A x, int team, Combine combine) {
  return team > 32 ? block_reduce(x, combine) : warp_reduce(x, team, combine);
}

// The sum over the threads before the calling one, and over all. All threads of the block take part.
template <class A>
__device__ A block_prefix(A x, A& total) {
  SHARED(A, of_warp, [kThreads / 32]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  A sum = x;
  for (int step = 1; step < 32; step *= 2) {
    const A other = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += other;
  }
  __syncthreads();  // the last call's sums have been read
  if (lane == 31) of_warp[warp] = sum;
  __syncthreads();
  A before = A(0);
  total = A(0);
  for (int other = 0; other < kThreads / 32; ++other) {
    if (other == warp) before = total;
    total += of_warp[other];
  }
  return before + sum - x;
}

// Packs of N elements that a thread loads before it uses the first.
template <int N>
constexpr int kAtOnce = N == 1 ? 2 : 4;

// Combines one number per element over a group's piece. `load(offset)` reads N elements from `offset` of the segment
// on, `number(offset, loaded)` makes a Pack of numbers of them. The team's threads all get the result.
template <int N, int kPacks, class A, class Combine, class Load, class Number>
__device__ __forceinline__ A reduce_piece(const Cover& cover, std::int64_t group, int piece, bool active,
                                          Combine combine, Load load, Number number) {
  A sum = A(0);
  if (active) {
    const std::int64_t begin = piece * cover.length;
    const std::int64_t size = cover.group_size();
    const std::int64_t end = begin + cover.length < size ? begin + cover.length : size;
    stream<kPacks, std::int64_t>(
        begin + cover.rank_of(threadIdx.x) * N, end, cover.team() * N,
        [&](std::int64_t i) { return cover.offset(group, i); }, load,
        [&](std::int64_t, std::int64_t offset, const auto& loaded) {
          const Pack<A, N> numbers = number(offset, loaded);
#pragma unroll
          for (int k = 0; k < N; ++k) sum = combine(sum, numbers.value[k]);
        });
  }
  return team_reduce(sum, cover.team(), combine);
}

// A thread's place in a tile of columns.
struct Tile {
  std::int64_t column;    // the thread's first
  std::int64_t row, end;  // the rows of the block's chunk; the thread takes every `step`-th
  int step;
  std::int64_t first_column;  // the block's
  int chunk;
};

template <int N>
__device__ __forceinline__ Tile find_tile(const Cover& cover, int block) {
  const std::int64_t side = cover.team() * N;
  const int tiles = int((cover.columns() + side - 1) / side);
  Tile tile;
  tile.chunk = block / tiles;
  tile.first_column = (block % tiles) * side;
  tile.column = tile.first_column + cover.rank_of(threadIdx.x) * N;
  tile.row = tile.chunk * cover.length + cover.team_of(threadIdx.x);
  tile.end = (tile.chunk + 1) * cover.length;
  if (tile.end > cover.layout.outer) tile.end = cover.layout.outer;
  tile.step = cover.teams();
  return tile;
}

// Combines one number per element down the columns of a tile, and hands every column's result to
// `emit(column, result)` on one thread. `shared` holds kThreads * N numbers.
template <int N, int kPacks, class A, class Combine, class Load, class Number, class Emit>
__device__ __forceinline__ void reduce_columns(const Cover& cover, const Tile& tile, A* shared, Combine combine,
                                               Load load, Number number, Emit emit) {
  Pack<A, N> sum{};
  const std::int64_t columns = cover.columns();
  if (tile.column < columns) {
    stream<kPacks, std::int64_t>(
        tile.row, tile.end, tile.step, [&](std::int64_t row) { return row * columns + tile.column; }, load,
        [&](std::int64_t, std::int64_t offset, const auto& loaded) {
          const Pack<A, N> numbers = number(offset, loaded);
#pragma unroll
          for (int k = 0; k < N; ++k) sum.value[k] = combine(sum.value[k], numbers.value[k]);
        });
  }
  // [step rows of threads][columns of the tile]; each column's numbers are combined from the top down
  *reinterpret_cast<Pack<A, N>*>(shared + threadIdx.x * N) = sum;
  __syncthreads();
  const int side = cover.team() * N;
  for (int c = threadIdx.x; c < side && tile.first_column + c < columns; c += kThreads) {
    A total = shared[c];
    for (int other = 1; other < tile.step; ++other) total = combine(total, shared[other * side + c]);
    emit(tile.first_column + c, total);
  }
  __syncthreads();  // the next call may write `shared`
}

}  // namespace sparse_accel::cuda
