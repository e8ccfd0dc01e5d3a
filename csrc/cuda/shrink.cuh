#pragma once
// The traversal that prox_ and rmda_step_ share: find a point x, scale each of its groups by a factor
// that depends on the group's norm, and write the result. A body says what x is and what is written:
//
//   struct Body {
//     using Element;                        // of the tensor that is written
//     struct Options, Entry;                // per launch and per segment; Entry has .target, a Target
//     Body(const Options&, const Entry&, start);  // start: the first element of the copy (tables.cuh)
//     bool skip() const;                    // leave everything as it is (the same for all threads)
//     Prox prox;  Compute<Element> tau;     // see prox_scale
//     static constexpr int kPacks;          // packs of 16 bytes that a thread may load before it uses the first
//     auto load_first<N>(offset);           // what first() needs: loads, and nothing else
//     Pack first<N>(offset, loaded);        // x; called once per element
//     auto load_last<N>(offset);            // what write() needs, where x is at hand
//     void write<N>(offset, shrunk, loaded);
//     auto load_all<N>(offset);             // what both need
//     auto load_again<N>(offset);           // what again() and write() need, after first() was called by the same
//     Pack again<N>(loaded);                // thread of an earlier launch: x once more
//   };
//
// Groups of one element need no reduction. Groups that fit into shared memory are read once: each thread
// keeps its part of x there between the two halves. Others take three launches: squared norms in parts,
// the groups' factors, the second half; strided ones a single launch where blocks form clusters (cluster.cuh).
#include "reduce.cuh"

namespace sparse_accel::cuda {

// What every entry knows of its segment.
template <class A>
struct Target {
  Cover cover;  // of one copy
  int copies;
  A* partials;     // squared norms in parts, cover.partials() of each copy; null unless three launches
  A* factors;      // [copies, groups]; null unless three launches
  double* values;  // penalty, one number per block that finishes groups; null if not wanted
};

// A factor of 0 gives 0, not -0 or NaN.
template <class A>
__device__ __forceinline__ A scaled(A x, A factor) {
  return factor == A(0) ? A(0) : x * factor;
}

template <int N, class A>
__device__ __forceinline__ Pack<A, N> scaled(Pack<A, N> x, const Pack<A, N>& factor) {
#pragma unroll
  for (int k = 0; k < N; ++k) x.value[k] = scaled(x.value[k], factor.value[k]);
  return x;
}
template <int N, class A>
__device__ __forceinline__ Pack<A, N> scaled(Pack<A, N> x, A factor) {
#pragma unroll
  for (int k = 0; k < N; ++k) x.value[k] = scaled(x.value[k], factor);
  return x;
}

template <class Body>
using BodyTable = Table<typename Body::Entry, typename Body::Options>;

template <class Body>
__device__ __forceinline__ Spot shrink_spot(const BodyTable<Body>& table, int index = int(blockIdx.x)) {
  return find_spot(table, [](const typename Body::Entry& entry) { return entry.target.copies; }, index);
}

// The body for the spot's copy.
template <class Body>
__device__ __forceinline__ Body shrink_body(const BodyTable<Body>& table, const Spot& spot) {
  const auto& entry = table.entries[spot.entry];
  return Body(table.options, entry, spot.copy * entry.target.cover.size());
}

// Sums the block's penalty into its place. All threads take part.
template <class Entry, class Options>
__device__ __forceinline__ void write_value(const Table<Entry, Options>& table, const Spot& spot, double value) {
  double* const values = table.entries[spot.entry].target.values;
  if (!values) return;
  value = block_reduce(value, Add());
  if (threadIdx.x == 0) values[int(blockIdx.x) - table.first_block[spot.entry]] = value;
}

// Groups of one element: no norm, no division.
template <class A>
__device__ __forceinline__ A shrunk_element(Prox prox, A x, A tau) {
  const A size = x < A(0) ? -x : x;
  if (prox == Prox::hard) return tau != A(0) && x * x <= A(2) * tau ? A(0) : x;
  const A rest = size - tau;  // NaN stays
  return tau == A(0) ? x : size <= tau ? A(0) : x < A(0) ? -rest : rest;
}

template <int N, class Body>
__device__ __forceinline__ double shrink_elements(const Body& body, bool with_value, std::int64_t begin,
                                                  std::int64_t end) {
  using A = Compute<typename Body::Element>;
  double value = 0;
  stream<Body::kPacks, std::int64_t>(
      begin + std::int64_t(threadIdx.x) * N, end, kThreads * N, [](std::int64_t i) { return i; },
      [&](std::int64_t at) { return body.template load_all<N>(at); },
      [&](std::int64_t i, std::int64_t, const auto& loaded) {
        Pack<A, N> x = body.template first<N>(i, loaded);
#pragma unroll
        for (int k = 0; k < N; ++k) x.value[k] = shrunk_element(body.prox, x.value[k], body.tau);
        body.template write<N>(i, x, loaded);
        if (!with_value) return;
#pragma unroll
        for (int k = 0; k < N; ++k) {
          const A size = x.value[k] < A(0) ? -x.value[k] : x.value[k];
          value += body.prox == Prox::hard ? A(size > A(0)) : size;
        }
      });
  return value;
}

// Groups of one element. Block b takes elements [b, b + 1) * length.
template <class Body>
__global__ void __launch_bounds__(kThreads) shrink_elements_kernel(const __grid_constant__ BodyTable<Body> table) {
  constexpr int kPack = kWidth<typename Body::Element>;
  const Overlap overlap;
  const Spot spot = shrink_spot<Body>(table);
  const auto& target = table.entries[spot.entry].target;
  const Body body = shrink_body<Body>(table, spot);
  if (body.skip()) return;
  const std::int64_t begin = spot.block * target.cover.length;
  const std::int64_t size = target.cover.layout.groups;
  const std::int64_t end = begin + target.cover.length < size ? begin + target.cover.length : size;
  const std::int64_t tail = target.cover.packed ? end - (end - begin) % kPack : begin;
  const bool with_value = target.values != nullptr;
  double value = shrink_elements<kPack>(body, with_value, begin, tail);
  value += shrink_elements<1>(body, with_value, tail, end);
  write_value(table, spot, value);
}

template <int N, class Body, class A>
__device__ __forceinline__ double shrink_fused(const Body& body, const Target<A>& target, int block, A* staging) {
  const Cover& cover = target.cover;
  const int rank = cover.rank_of(threadIdx.x), slot = cover.team_of(threadIdx.x);
  const std::int64_t group = std::int64_t(block) * cover.teams() + slot;
  const int size = int(cover.group_size());
  const bool active = group < cover.layout.groups;
  A* const own = staging + slot * size;
  const auto place = [&](int i) { return cover.offset(group, i); };
  A square = A(0);
  if (active) {
    stream<Body::kPacks, int>(
        rank * N, size, cover.team() * N, place, [&](std::int64_t at) { return body.template load_first<N>(at); },
        [&](int i, std::int64_t at, const auto& loaded) {
          const Pack<A, N> x = body.template first<N>(at, loaded);
          *reinterpret_cast<Pack<A, N>*>(own + i) = x;
#pragma unroll
          for (int k = 0; k < N; ++k) square += x.value[k] * x.value[k];
        });
  }
  square = team_reduce(square, cover.team(), Add());
  if (!active) return 0;
  const A factor = prox_scale(body.prox, square, body.tau, A(size));
  stream<Body::kPacks, int>(  // the thread's own elements: no barrier
      rank * N, size, cover.team() * N, place, [&](std::int64_t at) { return body.template load_last<N>(at); },
      [&](int i, std::int64_t at, const auto& loaded) {
        const Pack<A, N> x = *reinterpret_cast<const Pack<A, N>*>(own + i);
        body.template write<N>(at, scaled(x, factor), loaded);
      });
  return target.values && rank == 0 ? double(penalty_value(body.prox, square, factor, A(size))) : 0;
}

// Groups in runs, each finished by one team. `staging` holds the elements of the block's groups.
template <class Body>
__global__ void __launch_bounds__(kThreads) shrink_fused_kernel(const __grid_constant__ BodyTable<Body> table) {
  using A = Compute<typename Body::Element>;
  const Overlap overlap;
  DYNAMIC_SHARED(A, staging);
  const Spot spot = shrink_spot<Body>(table);
  const auto& target = table.entries[spot.entry].target;
  const Body body = shrink_body<Body>(table, spot);
  if (body.skip()) return;
  const double value = target.cover.packed
                           ? shrink_fused<kWidth<typename Body::Element>>(body, target, spot.block, staging)
                           : shrink_fused<1>(body, target, spot.block, staging);
  write_value(table, spot, value);
}

template <int N, class Body, class A>
__device__ __forceinline__ void square_block(const Body& body, const Cover& cover, A* partials, int block, A* shared) {
  const auto read = [&](std::int64_t offset) { return body.template load_first<N>(offset); };
  const auto number = [&](std::int64_t offset, const auto& loaded) {
    Pack<A, N> x = body.template first<N>(offset, loaded);
#pragma unroll
    for (int k = 0; k < N; ++k) x.value[k] *= x.value[k];
    return x;
  };
  if (cover.kind == CoverKind::columns) {
    const Tile tile = find_tile<N>(cover, block);
    reduce_columns<N, Body::kPacks>(cover, tile, shared, Add(), read, number, [&](std::int64_t column, A sum) {
      partials[tile.chunk * cover.columns() + column] = sum;
    });
    return;
  }
  const std::int64_t group = block / cover.pieces;  // the team is the block
  const int piece = int(block - group * cover.pieces);
  const A sum = reduce_piece<N, Body::kPacks, A>(cover, group, piece, true, Add(), read, number);
  if (threadIdx.x == 0) partials[block] = sum;
}

// First of three: the first half, and squared norms in parts.
template <class Body>
__global__ void __launch_bounds__(kThreads, kBlocks)
    shrink_squares_kernel(const __grid_constant__ BodyTable<Body> table) {
  using T = typename Body::Element;
  SHARED(Compute<T>, shared, [kThreads * kWidth<T>]);
  const Spot spot = shrink_spot<Body>(table);
  const auto& target = table.entries[spot.entry].target;
  const Body body = shrink_body<Body>(table, spot);
  if (body.skip()) return;
  const GroupLayout view = target.cover.partials();
  auto* const partials = target.partials + spot.copy * (view.outer * view.groups * view.inner);
  if (target.cover.packed) {
    square_block<kWidth<T>>(body, target.cover, partials, spot.block, shared);
  } else {
    square_block<1>(body, target.cover, partials, spot.block, shared);
  }
}

// Second of three: the factor of every group.
template <class Body>
__global__ void __launch_bounds__(kThreads) shrink_factors_kernel(const __grid_constant__ BodyTable<Body> table) {
  using A = Compute<typename Body::Element>;
  const Spot spot = shrink_spot<Body>(table);
  const auto& target = table.entries[spot.entry].target;
  const Body body = shrink_body<Body>(table, spot);
  if (body.skip()) return;
  const Cover cover = cover_runs(target.cover.partials(), 1, false);
  const A* const partials = target.partials + spot.copy * cover.size();
  const std::int64_t group = std::int64_t(spot.block) * cover.teams() + cover.team_of(threadIdx.x);
  const bool active = group < cover.layout.groups;
  const A square = reduce_piece<1, kAtOnce<1>, A>(
      cover, group, 0, active, Add(), [&](std::int64_t offset) { return load<1>(partials + offset); },
      [](std::int64_t, const Pack<A, 1>& partial) { return partial; });
  double value = 0;
  if (active && cover.rank_of(threadIdx.x) == 0) {
    const A size = A(target.cover.group_size());
    const A factor = prox_scale(body.prox, square, body.tau, size);
    target.factors[spot.copy * cover.layout.groups + group] = factor;
    if (target.values) value = penalty_value(body.prox, square, factor, size);
  }
  write_value(table, spot, value);
}

template <int N, class Body, class A>
__device__ __forceinline__ void finish_block(const Body& body, const Cover& cover, const A* factors, int block) {
  Pack<A, N> factor;
  const auto read = [&](std::int64_t offset) { return body.template load_again<N>(offset); };
  const auto write = [&](std::int64_t, std::int64_t offset, const auto& loaded) {
    body.template write<N>(offset, scaled(body.template again<N>(loaded), factor), loaded);
  };
  if (cover.kind == CoverKind::columns) {
    const Tile tile = find_tile<N>(cover, block);
    const std::int64_t columns = cover.columns();
    if (tile.column >= columns) return;
#pragma unroll
    for (int k = 0; k < N; ++k) factor.value[k] = factors[divide(tile.column + k, cover.layout.inner)];
    stream<Body::kPacks, std::int64_t>(
        tile.row, tile.end, tile.step, [&](std::int64_t row) { return row * columns + tile.column; }, read, write);
    return;
  }
  const std::int64_t group = block / cover.pieces, begin = (block - group * cover.pieces) * cover.length;
  const std::int64_t size = cover.group_size();
  const std::int64_t end = begin + cover.length < size ? begin + cover.length : size;
#pragma unroll
  for (int k = 0; k < N; ++k) factor.value[k] = factors[group];
  stream<Body::kPacks, std::int64_t>(
      begin + std::int64_t(threadIdx.x) * N, end, kThreads * N, [&](std::int64_t i) { return cover.offset(group, i); },
      read, write);
}

// Third of three: the second half. Thread for thread the elements of the first launch, while caches hold them: the last
// first, which they are surest to.
template <class Body>
__global__ void __launch_bounds__(kThreads, kBlocks)
    shrink_finish_kernel(const __grid_constant__ BodyTable<Body> table) {
  const Spot spot = shrink_spot<Body>(table, int(gridDim.x - 1 - blockIdx.x));
  const auto& target = table.entries[spot.entry].target;
  const Body body = shrink_body<Body>(table, spot);
  if (body.skip()) return;
  const auto* const factors = target.factors + spot.copy * target.cover.partials().groups;
  if (target.cover.packed) {
    finish_block<kWidth<typename Body::Element>>(body, target.cover, factors, spot.block);
  } else {
    finish_block<1>(body, target.cover, factors, spot.block);
  }
}

}  // namespace sparse_accel::cuda
