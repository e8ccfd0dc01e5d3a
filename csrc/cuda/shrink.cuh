#pragma once
// The traversal that prox_ and rmda_step_ share: find a point x, scale each of its groups by a factor
// that depends on the group's norm, and write the result. A body says what x is and what is written:
//
//   struct Body {
//     using Element;                        // of the tensor that is written
//     struct Options, Entry;                // per launch and per segment; Entry has .target, a Target
//     Body(const Options&, const Entry&);
//     bool skip() const;                    // leave everything as it is (the same for all threads)
//     Prox prox;  Compute<Element> tau;     // see prox_scale
//     Pack first<N>(offset);                // x; called once per element
//     Pack again<N>(offset);                // x once more, after first() was called by the same thread of
//                                           // the same or an earlier launch
//     void write<N>(offset, x, factor);     // factor: a Pack
//   };
//
// Groups of one element need no reduction. Groups that fit into shared memory are read once: each thread
// keeps its part of x there between the two halves. Others take three launches: squared norms in parts,
// the groups' factors, the second half.
#include "reduce.cuh"

namespace sparse_accel::cuda {

// What every entry knows of its segment.
template <class A>
struct Target {
  Cover cover;
  A* partials;     // squared norms in parts, cover.partials(); null unless three launches
  A* factors;      // [groups]; null unless three launches
  double* values;  // penalty, one number per block that finishes groups; null if not wanted
};

// A factor of 0 gives 0, not -0 or NaN.
template <class A>
__device__ __forceinline__ A scaled(A x, A factor) {
  return factor == A(0) ? A(0) : x * factor;
}

constexpr std::size_t kStagingBytes = 40 << 10;  // 48 KB of shared memory are there without asking

template <class Body>
using BodyTable = Table<typename Body::Entry, typename Body::Options>;

// Sums the block's penalty into its place. All threads take part.
template <class A>
__device__ __forceinline__ void write_value(const Target<A>& target, int block, double value) {
  if (!target.values) return;
  value = block_reduce(value, Add());
  if (threadIdx.x == 0) target.values[block] = value;
}

template <int N, class Body>
__device__ __forceinline__ double shrink_elements(Body& body, std::int64_t begin, std::int64_t end) {
  using A = Compute<typename Body::Element>;
  double value = 0;
  for (std::int64_t i = begin + std::int64_t(threadIdx.x) * N; i < end; i += kThreads * N) {
    const Pack<A, N> x = body.template first<N>(i);
    Pack<A, N> factor;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const A square = x.value[k] * x.value[k];
      factor.value[k] = prox_scale(body.prox, square, body.tau, A(1));
      value += penalty_value(body.prox, square, factor.value[k], A(1));
    }
    body.template write<N>(i, x, factor);
  }
  return value;
}

// Groups of one element. Block b takes elements [b, b + 1) * length.
template <class Body>
__global__ void __launch_bounds__(kThreads) shrink_elements_kernel(const __grid_constant__ BodyTable<Body> table) {
  constexpr int kPack = kWidth<typename Body::Element>;
  const int i = find_entry(table);
  const auto& target = table.entries[i].target;
  const int block = int(blockIdx.x) - table.first_block[i];
  Body body(table.options, table.entries[i]);
  if (body.skip()) return;
  const std::int64_t begin = block * target.cover.length;
  const std::int64_t size = target.cover.layout.groups;
  const std::int64_t end = begin + target.cover.length < size ? begin + target.cover.length : size;
  const std::int64_t tail = target.cover.packed ? end - (end - begin) % kPack : begin;
  double value = shrink_elements<kPack>(body, begin, tail);
  value += shrink_elements<1>(body, tail, end);
  write_value(target, block, value);
}

template <int N, class Body, class A>
__device__ __forceinline__ double shrink_fused(Body& body, const Target<A>& target, int block, A* staging) {
  const Cover& cover = target.cover;
  const int rank = threadIdx.x & (cover.team - 1), slot = threadIdx.x / cover.team;
  const std::int64_t group = std::int64_t(block) * (kThreads / cover.team) + slot;
  const int size = int(cover.group_size());
  const bool active = group < cover.layout.groups;
  A* const own = staging + slot * size;
  A square = A(0);
  if (active) {
    for (int i = rank * N; i < size; i += cover.team * N) {
      const Pack<A, N> x = body.template first<N>(cover.offset(group, i));
      *reinterpret_cast<Pack<A, N>*>(own + i) = x;
#pragma unroll
      for (int k = 0; k < N; ++k) square += x.value[k] * x.value[k];
    }
  }
  square = team_reduce(square, cover.team, Add());
  if (!active) return 0;
  Pack<A, N> factor;
#pragma unroll
  for (int k = 0; k < N; ++k) factor.value[k] = prox_scale(body.prox, square, body.tau, A(size));
  for (int i = rank * N; i < size; i += cover.team * N) {  // the thread's own elements: no barrier
    body.template write<N>(cover.offset(group, i), *reinterpret_cast<const Pack<A, N>*>(own + i), factor);
  }
  return rank == 0 ? double(penalty_value(body.prox, square, factor.value[0], A(size))) : 0;
}

// Groups in runs, each finished by one team. `staging` holds the elements of the block's groups.
template <class Body>
__global__ void __launch_bounds__(kThreads) shrink_fused_kernel(const __grid_constant__ BodyTable<Body> table) {
  using A = Compute<typename Body::Element>;
  DYNAMIC_SHARED(A, staging);
  const int i = find_entry(table);
  const auto& target = table.entries[i].target;
  const int block = int(blockIdx.x) - table.first_block[i];
  Body body(table.options, table.entries[i]);
  if (body.skip()) return;
  const double value = target.cover.packed ? shrink_fused<kWidth<typename Body::Element>>(body, target, block, staging)
                                           : shrink_fused<1>(body, target, block, staging);
  write_value(target, block, value);
}

template <int N, class Body, class A>
__device__ __forceinline__ void square_block(Body& body, const Target<A>& target, int block, A* shared) {
  const Cover& cover = target.cover;
  const auto number = [&](std::int64_t offset) {
    Pack<A, N> x = body.template first<N>(offset);
#pragma unroll
    for (int k = 0; k < N; ++k) x.value[k] *= x.value[k];
    return x;
  };
  if (cover.kind == CoverKind::columns) {
    const Tile tile = find_tile<N>(cover, block);
    reduce_columns<N>(cover, tile, shared, Add(), number, [&](std::int64_t column, A sum) {
      target.partials[tile.chunk * cover.columns() + column] = sum;
    });
    return;
  }
  const std::int64_t group = block / cover.pieces;  // the team is the block
  const A sum = reduce_piece<N, A>(cover, group, int(block - group * cover.pieces), true, Add(), number);
  if (threadIdx.x == 0) target.partials[block] = sum;
}

// First of three: the first half, and squared norms in parts.
template <class Body>
__global__ void __launch_bounds__(kThreads) shrink_squares_kernel(const __grid_constant__ BodyTable<Body> table) {
  using T = typename Body::Element;
  SHARED(Compute<T>, shared, [kThreads * kWidth<T>]);
  const int i = find_entry(table);
  const auto& target = table.entries[i].target;
  const int block = int(blockIdx.x) - table.first_block[i];
  Body body(table.options, table.entries[i]);
  if (body.skip()) return;
  if (target.cover.packed) {
    square_block<kWidth<T>>(body, target, block, shared);
  } else {
    square_block<1>(body, target, block, shared);
  }
}

// Second of three: the factor of every group.
template <class Body>
__global__ void __launch_bounds__(kThreads) shrink_factors_kernel(const __grid_constant__ BodyTable<Body> table) {
  using A = Compute<typename Body::Element>;
  const int i = find_entry(table);
  const auto& target = table.entries[i].target;
  const int block = int(blockIdx.x) - table.first_block[i];
  const Body body(table.options, table.entries[i]);
  if (body.skip()) return;
  const Cover cover = cover_runs(target.cover.partials(), 1, false);
  const std::int64_t group = std::int64_t(block) * (kThreads / cover.team) + threadIdx.x / cover.team;
  const bool active = group < cover.layout.groups;
  const A square = reduce_piece<1, A>(cover, group, 0, active, Add(),
                                      [&](std::int64_t offset) { return load<1>(target.partials + offset); });
  double value = 0;
  if (active && threadIdx.x % cover.team == 0) {
    const A size = A(target.cover.group_size());
    const A factor = prox_scale(body.prox, square, body.tau, size);
    target.factors[group] = factor;
    value = penalty_value(body.prox, square, factor, size);
  }
  write_value(target, block, value);
}

template <int N, class Body, class A>
__device__ __forceinline__ void finish_block(Body& body, const Target<A>& target, int block) {
  const Cover& cover = target.cover;
  Pack<A, N> factor;
  if (cover.kind == CoverKind::columns) {
    const Tile tile = find_tile<N>(cover, block);
    const std::int64_t columns = cover.columns();
    if (tile.column >= columns) return;
#pragma unroll
    for (int k = 0; k < N; ++k) factor.value[k] = target.factors[divide(tile.column + k, cover.layout.inner)];
    for (std::int64_t row = tile.row; row < tile.end; row += tile.step) {
      const std::int64_t offset = row * columns + tile.column;
      body.template write<N>(offset, body.template again<N>(offset), factor);
    }
    return;
  }
  const std::int64_t group = block / cover.pieces, begin = (block - group * cover.pieces) * cover.length;
  const std::int64_t size = cover.group_size();
  const std::int64_t end = begin + cover.length < size ? begin + cover.length : size;
#pragma unroll
  for (int k = 0; k < N; ++k) factor.value[k] = target.factors[group];
  for (std::int64_t i = begin + std::int64_t(threadIdx.x) * N; i < end; i += kThreads * N) {
    const std::int64_t offset = cover.offset(group, i);
    body.template write<N>(offset, body.template again<N>(offset), factor);
  }
}

// Third of three: the second half. Thread for thread the elements of the first launch, while caches hold them.
template <class Body>
__global__ void __launch_bounds__(kThreads) shrink_finish_kernel(const __grid_constant__ BodyTable<Body> table) {
  const int i = find_entry(table);
  const auto& target = table.entries[i].target;
  const int block = int(blockIdx.x) - table.first_block[i];
  Body body(table.options, table.entries[i]);
  if (body.skip()) return;
  if (target.cover.packed) {
    finish_block<kWidth<typename Body::Element>>(body, target, block);
  } else {
    finish_block<1>(body, target, block);
  }
}

}  // namespace sparse_accel::cuda
