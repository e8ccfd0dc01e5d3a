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
  Cover cover;
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
__device__ __forceinline__ void score_block(const ScoreEntry<T>& entry, int block, bool root, Compute<T>* shared) {
  using A = Compute<T>;
  using Combine = typename CombineOf<kind>::type;
  const Cover& cover = entry.cover;
  const bool finish = root && cover.is_whole();
  const auto number = [&](std::int64_t offset) {
    Pack<A, N> x = load<N>(entry.data + offset);
#pragma unroll
    for (int k = 0; k < N; ++k) x.value[k] = contribution<kind>(x.value[k]);
    return x;
  };
  if (cover.kind == CoverKind::columns) {
    const Tile tile = find_tile<N>(cover, block);
    reduce_columns<N>(cover, tile, shared, Combine(), number, [&](std::int64_t column, A sum) {
      entry.output[tile.chunk * cover.columns() + column] = finish ? std::sqrt(sum) : sum;
    });
    return;
  }
  const std::int64_t unit = std::int64_t(block) * (kThreads / cover.team) + threadIdx.x / cover.team;
  const std::int64_t group = unit / cover.pieces;
  const bool active = group < cover.layout.groups;
  const A sum = reduce_piece<N, A>(cover, group, int(unit - group * cover.pieces), active, Combine(), number);
  if (active && threadIdx.x % cover.team == 0) entry.output[unit] = finish ? std::sqrt(sum) : sum;
}

template <Score kind, class T>
__global__ void __launch_bounds__(kThreads)
    group_score_kernel(const __grid_constant__ Table<ScoreEntry<T>, ScoreOptions> table) {
  SHARED(Compute<T>, shared, [kThreads * kWidth<T>]);
  const int i = find_entry(table);
  const ScoreEntry<T>& entry = table.entries[i];
  const int block = int(blockIdx.x) - table.first_block[i];
  if (entry.cover.packed) {
    score_block<kWidth<T>, kind>(entry, block, table.options.root, shared);
  } else {
    score_block<1, kind>(entry, block, table.options.root, shared);
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
    const Cover cover = cover_groups(segment.layout, kWidth<T>, is_aligned(segment.data));
    A* output = static_cast<A*>(segment.output);
    if (!cover.is_whole()) {
      const GroupLayout view = cover.partials();
      A* const partials = static_cast<A*>(allocate(sizeof(A) * std::size_t(view.outer * view.groups * view.inner)));
      const Cover of_partials = cover_runs(view, kWidth<A>, true);
      finish.push_back({{partials, output, of_partials}, blocks_of(of_partials, kWidth<A>)});
      output = partials;
    }
    work.push_back({{static_cast<const T*>(segment.data), output, cover}, blocks_of(cover, kWidth<T>)});
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
  switch (dtype) {
    case DType::f32:
      launch_kind<float>(segments, kind, root, allocate, stream);
      break;
    case DType::f64:
      launch_kind<double>(segments, kind, root, allocate, stream);
      break;
    case DType::bf16:
      launch_kind<__nv_bfloat16>(segments, kind, root, allocate, stream);
      break;
    case DType::f16:
      launch_kind<__half>(segments, kind, root, allocate, stream);
      break;
  }
  return cudaGetLastError();
}

}  // namespace sparse_accel::cuda
