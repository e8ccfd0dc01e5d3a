// Scores of groups: one pass over the elements, and one over the partial sums of groups that several blocks share, but
// where blocks form clusters: those of strided groups add theirs up through distributed shared memory (cluster.cuh says
// what of that an emulator runs). Reads every element once.
#include "group_score.h"

#include "reduce.cuh"
#include "strip.cuh"

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
  int packs;  // side by side in a strip of a cluster
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
  const Overlap overlap;
  SHARED(Compute<T>, shared, [kThreads * kWidth<T>]);
  const Spot spot = find_spot(table, [](const ScoreEntry<T>& entry) { return entry.copies; });
  const ScoreEntry<T>& entry = table.entries[spot.entry];
  if (entry.cover.packed) {
    score_block<kWidth<T>, kind>(entry, spot, table.options.root, shared);
  } else {
    score_block<1, kind>(entry, spot, table.options.root, shared);
  }
}

constexpr int kScoreStripBytes = 256;
constexpr int kMaxScoreStrip = 62 * 8;  // columns: twice an odd run of kShortRun - 1 packs of 8

// A cluster owns a strip of columns of whole groups, each of its blocks a share of the rows.
template <Score kind, class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    score_strips_kernel(const __grid_constant__ Table<ScoreEntry<T>, ScoreOptions> table) {
  using A = Compute<T>;
  constexpr int N = kWidth<T>;
  const typename CombineOf<kind>::type combine;
  const Overlap overlap;
  SHARED(A, part, [kThreads * N]);
  SHARED(A, sums, [kMaxScoreStrip]);  // the block's, of every column: what other blocks read
  const Spot spot = find_spot(table, [](const ScoreEntry<T>& entry) { return entry.copies; });
  const ScoreEntry<T>& entry = table.entries[spot.entry];
  const GroupLayout& layout = entry.cover.layout;
  const unsigned rank = cluster_rank(), blocks = cluster_size();
  const int width = entry.packs * N, lines = kThreads / entry.packs;
  const int line = int(threadIdx.x) / entry.packs, own = (int(threadIdx.x) - line * entry.packs) * N;
  const std::int64_t columns = layout.groups * layout.inner;
  const std::int64_t first_column = spot.block / int(blocks) * std::int64_t(width);
  const std::int64_t share = ceil_div(layout.outer, blocks), first_row = rank * share;
  const std::int64_t end = first_row + share < layout.outer ? first_row + share : layout.outer;
  const T* const data = entry.data + spot.copy * entry.cover.size() + first_column + own + (first_row + line) * columns;
  Pack<A, N> sum{};
  if (line < lines && first_column + own < columns) {
    stream<kAtOnce<N>, int>(
        0, int(end - first_row) - line, lines, [&](int row) { return row * columns; },
        [&](std::int64_t at) { return load<N>(data + at); },
        [&](int, std::int64_t, const Pack<A, N>& x) {
#pragma unroll
          for (int k = 0; k < N; ++k) sum.value[k] = combine(sum.value[k], contribution<kind>(x.value[k]));
        });
  }
  *reinterpret_cast<Pack<A, N>*>(part + threadIdx.x * N) = sum;
  __syncthreads();
  for (int c = threadIdx.x; c < width; c += kThreads) {
    A total = part[c];
    for (int other = 1; other < lines; ++other) total = combine(total, part[other * width + c]);
    sums[c] = total;
  }
  cluster_sync();
  const int inner = int(layout.inner), groups = width / inner;
  const std::int64_t first_group = divide(first_column, inner);
  for (int g = int(threadIdx.x) * int(blocks) + int(rank); g < groups; g += kThreads * int(blocks)) {
    if (first_group + g >= layout.groups) break;
    A total = A(0);
    for (unsigned other = 0; other < blocks; ++other) {
      const A* const from = cluster_shared(sums, other) + g * inner;
      for (int i = 0; i < inner; ++i) total = combine(total, from[i]);
    }
    entry.output[spot.copy * layout.groups + first_group + g] = table.options.root ? std::sqrt(total) : total;
  }
  cluster_leave();  // not while others may read the sums
}

// Packs side by side in a cluster's strip; 0: the segment is not for clusters.
template <class T>
int strip_packs(const Cover& cover, const ClusterLimits& limits) {
  constexpr int kFewChunks = 4;  // what the pass over partial sums makes light of
  constexpr std::int64_t kMostRows = std::int64_t(1) << 30;
  if (!limits.blocks || cover.kind != CoverKind::columns || !cover.packed || cover.pieces < kFewChunks) return 0;
  if (cover.layout.outer > kMostRows) return 0;
  const int least = least_packs(cover.layout.inner, kWidth<T>, sizeof(T));
  const std::int64_t packs = ceil_div(kScoreStripBytes / 16, least) * least;
  return packs <= kThreads && packs * kWidth<T> <= kMaxScoreStrip ? int(packs) : 0;
}

// Long groups of which there are many: blocks enough, if each group has one, or a warp where there are more of them.
void keep_whole(Cover& cover, int copies) {
  constexpr std::int64_t kEnoughBlocks = 512, kEnoughWarps = 1024, kLongestOfWarp = 16 << 10;  // bytes, as kLongGroup
  const std::int64_t groups = cover.layout.groups * copies;
  if (cover.kind != CoverKind::runs || groups < kEnoughBlocks) return;
  cover.pieces = 1;
  cover.length = cover.group_size();
  if (groups >= kEnoughWarps && cover.group_size() * 4 <= kLongestOfWarp && cover.shift > 5) cover.shift = 5;
}

template <Score kind, class T>
void launch(const std::vector<ScoreSegment>& segments, bool root, const Allocate& allocate, cudaStream_t stream) {
  using A = Compute<T>;
  // Partial results are combined as they are: a sum of numbers, or the largest of magnitudes.
  constexpr Score kFinish = kind == Score::amax ? Score::amax : Score::sum;
  std::vector<Work<ScoreEntry<T>>> work, strips;
  std::vector<Work<ScoreEntry<A>>> finish;
  const ClusterLimits limits = cluster_limits<score_strips_kernel<kind, T>>();
  for (const ScoreSegment& segment : segments) {
    const std::int64_t each = segment.layout.outer * segment.layout.groups * segment.layout.inner;
    const bool aligned = is_aligned(segment.data) && (segment.copies == 1 || each % kWidth<T> == 0);
    Cover cover = cover_groups(segment.layout, kWidth<T>, aligned);
    const int copies = int(segment.copies);
    keep_whole(cover, copies);
    A* output = static_cast<A*>(segment.output);
    if (const int packs = strip_packs<T>(cover, limits)) {
      const std::int64_t clusters = copies * ceil_div(cover.columns(), std::int64_t(packs) * kWidth<T>);
      strips.push_back({{static_cast<const T*>(segment.data), output, cover, copies, packs}, clusters * limits.blocks});
      continue;
    }
    if (!cover.is_whole()) {
      const GroupLayout view = cover.partials();
      const std::int64_t size = view.outer * view.groups * view.inner;
      A* const partials = static_cast<A*>(allocate(sizeof(A) * std::size_t(copies * size)));
      const Cover of_partials = cover_runs(view, kWidth<A>, copies == 1 || size % kWidth<A> == 0);
      finish.push_back({{partials, output, of_partials, copies, 0}, copies * blocks_of(of_partials, kWidth<A>)});
      output = partials;
    }
    work.push_back(
        {{static_cast<const T*>(segment.data), output, cover, copies, 0}, copies * blocks_of(cover, kWidth<T>)});
  }
  Overlapping scores;
  launch_tables(score_strips_kernel<kind, T>, strips, ScoreOptions{root}, 0, stream, limits.blocks, &scores);
  launch_tables(group_score_kernel<kind, T>, work, ScoreOptions{root}, 0, stream, 0, &scores);
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
