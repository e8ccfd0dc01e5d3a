// Scores of groups: one pass over the elements, and one over the partial sums of groups that several
// blocks share. Reads every element once.
#include "group_score.h"

#include "reduce.cuh"

namespace sparse_accel::cuda {
namespace {

struct ScoreOptions {
  bool root;
};

template <class T>
struct ScoreEntry {
  const T* data;
  Compute<T>* output;
  Cover cover;  // of one copy
  int copies;
};

// What an element adds to its group.
template <Score kind, class A>
__device__ __forceinline__ A contribution(A x) {
  if (kind == Score::l2 || kind == Score::l2sq) return x * x;
  if (kind == Score::sum) return x;
  return x < A(0) ? -x : x;
}

template <Score kind>
struct CombineOf {
  using type = Add;
};
template <>
struct CombineOf<Score::amax> {
  using type = Max;
};

template <int N, Score kind, class T>
__device__ __forceinline__ void score_block(const ScoreEntry<T>& entry, const Spot& spot, bool root,
                                            Compute<T>* shared) {
  using A = Compute<T>;
  using Combine = typename CombineOf<kind>::type;
  const Cover& cover = entry.cover;
  const bool finish = root && cover.is_whole();
  const GroupLayout view = cover.partials();
  const T* const data = entry.data + spot.copy * cover.size();
  A* const output = entry.output + spot.copy * (view.outer * view.groups * view.inner);
  const auto read = [data](std::int64_t offset) { return load<N>(data + offset); };
  const auto number = [](std::int64_t, Pack<A, N> x) {
#pragma unroll
    for (int k = 0; k < N; ++k) x.value[k] = contribution<kind>(x.value[k]);
    return x;
  };
  if (cover.kind == CoverKind::columns) {
    const Tile tile = find_tile<N>(cover, spot.block);
    reduce_columns<N, kAtOnce<N>>(cover, tile, shared, Combine(), read, number, [&](std::int64_t column, A sum) {
      output[tile.chunk * cover.columns() + column] = finish ? std::sqrt(sum) : sum;
    });
    return;
  }
  const std::int64_t unit = std::int64_t(spot.block) * cover.teams() + cover.team_of(threadIdx.x);
  const std::int64_t group = divide(unit, cover.pieces);
  const bool active = group < cover.layout.groups;
  const int piece = int(unit - group * cover.pieces);
  const A sum = reduce_piece<N, kAtOnce<N>, A>(cover, group, piece, active, Combine(), read, number);
  if (active && cover.rank_of(threadIdx.x) == 0) output[unit] = finish ? std::sqrt(sum) : sum;
}

template <Score kind, class T>
__global__ void __launch_bounds__(kThreads)
    group_score_kernel(const __grid_constant__ Table<ScoreEntry<T>, ScoreOptions> table) {
  SHARED(Compute<T>, shared, [kThreads * kWidth<T>]);
  const Spot spot = find_spot(table, [](const ScoreEntry<T>& entry) { return entry.copies; });
  const ScoreEntry<T>& entry = table.entries[spot.entry];
  if (entry.cover.packed) {
    score_block<kWidth<T>, kind>(entry, spot, table.options.root, shared);
  } else {
    score_block<1, kind>(entry, spot, table.options.root, shared);
  }
}

template <Score kind, class T>
void launch(const std::vector<ScoreSegment>& segments, bool root, const Allocate& allocate, cudaStream_t stream) {
  using A = Compute<T>;
  // Partial results are combined as they are: a sum of numbers, or the largest of magnitudes.
  constexpr Score kFinish = kind == Score::amax ? Score::amax : Score::sum;
  std::vector<Work<ScoreEntry<T>>> work;
  std::vector<Work<ScoreEntry<A>>> finish;
  for (const ScoreSegment& segment : segments) {
    const std::int64_t each = segment.layout.outer * segment.layout.groups * segment.layout.inner;
    const bool aligned = is_aligned(segment.data) && (segment.copies == 1 || each % kWidth<T> == 0);
    const Cover cover = cover_groups(segment.layout, kWidth<T>, aligned);
    const int copies = int(segment.copies);
    A* output = static_cast<A*>(segment.output);
    if (!cover.is_whole()) {
      const GroupLayout view = cover.partials();
      const std::int64_t size = view.outer * view.groups * view.inner;
      A* const partials = static_cast<A*>(allocate(sizeof(A) * std::size_t(copies * size)));
      const Cover of_partials = cover_runs(view, kWidth<A>, copies == 1 || size % kWidth<A> == 0);
      finish.push_back({{partials, output, of_partials, copies}, copies * blocks_of(of_partials, kWidth<A>)});
      output = partials;
    }
    work.push_back(
        {{static_cast<const T*>(segment.data), output, cover, copies}, copies * blocks_of(cover, kWidth<T>)});
  }
  launch_tables(group_score_kernel<kind, T>, work, ScoreOptions{root}, 0, stream);
  launch_tables(group_score_kernel<kFinish, A>, finish, ScoreOptions{root}, 0, stream);
}

template <class T>
void launch_kind(const std::vector<ScoreSegment>& segments, Score kind, bool root, const Allocate& allocate,
                 cudaStream_t stream) {
  switch (kind) {
    case Score::l2:
    case Score::l2sq:
      return launch<Score::l2sq, T>(segments, root, allocate, stream);
    case Score::l1:
      return launch<Score::l1, T>(segments, root, allocate, stream);
    case Score::sum:
      return launch<Score::sum, T>(segments, root, allocate, stream);
    case Score::amax:
      return launch<Score::amax, T>(segments, root, allocate, stream);
  }
}

}  // namespace

cudaError_t group_score(DType dtype, const std::vector<ScoreSegment>& segments, Score kind, bool root,
                        const Allocate& allocate, cudaStream_t stream) {
  with_type(dtype, [&](auto zero) { launch_kind<decltype(zero)>(segments, kind, root, allocate, stream); });
  return cudaGetLastError();
}

}  // namespace sparse_accel::cuda
