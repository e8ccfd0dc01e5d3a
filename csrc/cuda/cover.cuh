#pragma once
// How the blocks of a launch cover one [outer, groups, inner] segment, so that neighbouring threads
// always touch neighbouring memory:
//
//   elements  every element is its own group: a stretch of memory per block.
//   runs      groups that are contiguous, or strided with long inner runs: a team of threads per group.
//             A long group is cut into `pieces`, one block each.
//   columns   strided groups with short inner runs: the matrix [outer, groups * inner] is cut into tiles;
//             a thread stays in its columns and walks down the rows.
//
// Whatever a group is cut into leaves partial sums, which again form a view [outer, groups, inner]
// (`partials`): one more pass over it, in fixed order, finishes the groups.
#include <cstdint>

#include "../group_layout.h"
#include "../math.h"
#include "tables.cuh"

namespace sparse_accel::cuda {

// a / b for numbers that are not negative; the fast way where both fit into 32 bits.
SPARSE_ACCEL_HOST_DEVICE std::int64_t divide(std::int64_t a, std::int64_t b) {
  if ((a | b) >> 32) return a / b;
  return std::uint32_t(a) / std::uint32_t(b);
}

enum class CoverKind : int { elements, runs, columns };

struct Cover {
  GroupLayout layout;
  std::int64_t length;  // elements: per block; runs: group elements per piece; columns: rows per chunk
  int pieces;           // runs: pieces per group; columns: chunks of rows
  short shift;          // of the team: runs: threads per group; columns: threads side by side. A power of two
  bool packed;          // 16-byte accesses
  CoverKind kind;

  SPARSE_ACCEL_HOST_DEVICE int team() const { return 1 << shift; }
  SPARSE_ACCEL_HOST_DEVICE int teams() const { return kThreads >> shift; }  // of a block
  SPARSE_ACCEL_HOST_DEVICE int team_of(unsigned thread) const { return int(thread) >> shift; }
  SPARSE_ACCEL_HOST_DEVICE int rank_of(unsigned thread) const { return int(thread) & (team() - 1); }

  SPARSE_ACCEL_HOST_DEVICE std::int64_t columns() const { return layout.groups * layout.inner; }
  SPARSE_ACCEL_HOST_DEVICE std::int64_t size() const { return layout.outer * layout.groups * layout.inner; }
  SPARSE_ACCEL_HOST_DEVICE std::int64_t group_size() const { return layout.outer * layout.inner; }

  // The view of the partial results; {1, groups, 1} if each group has one.
  SPARSE_ACCEL_HOST_DEVICE GroupLayout partials() const {
    if (kind == CoverKind::columns) return GroupLayout{pieces, layout.groups, layout.inner};
    return GroupLayout{1, layout.groups, pieces};
  }
  SPARSE_ACCEL_HOST_DEVICE bool is_whole() const { return partials().outer * partials().inner == 1; }

  // Where element i of a group lies. Groups that are covered by runs only.
  SPARSE_ACCEL_HOST_DEVICE std::int64_t offset(std::int64_t group, std::int64_t i) const {
    if (layout.outer == 1) return group * layout.inner + i;
    const std::int64_t row = divide(i, layout.inner);
    return row * columns() + group * layout.inner + (i - row * layout.inner);
  }
};

SPARSE_ACCEL_HOST_DEVICE std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
SPARSE_ACCEL_HOST_DEVICE std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// The smallest power of two that is at least n, but no more than `most`; and its exponent.
SPARSE_ACCEL_HOST_DEVICE int exponent_of_two(std::int64_t n, int most) {
  int shift = 0;
  while ((1 << shift) < n && (1 << shift) < most) ++shift;
  return shift;
}
SPARSE_ACCEL_HOST_DEVICE int power_of_two(std::int64_t n, int most) { return 1 << exponent_of_two(n, most); }

constexpr int kMaxPieces = 256;  // per group: more would only lengthen the finishing pass
constexpr int kMinPiece = 8192;  // group elements that are worth a block
constexpr int kElementsPerBlock = 16 * kThreads;
constexpr int kShortRun = 32;     // inner runs from this length on are read as runs: 128 bytes of float
constexpr int kTeamElements = 4;  // elements per thread of a team, before the team grows
constexpr int kLongGroup = 4096;  // bytes, in the compute type: groups beyond get a whole block

// Threads that share a run of n numbers of so many bytes in the compute type.
SPARSE_ACCEL_HOST_DEVICE int team_of(std::int64_t n, int bytes = 4) {
  return n * bytes > kLongGroup ? kThreads : power_of_two(ceil_div(n, kTeamElements), 32);
}

// The planners. `width`: elements in 16 bytes, 2 for double; `aligned`: every array starts on a 16-byte boundary.
inline Cover cover_elements(GroupLayout layout, bool aligned) {
  return Cover{layout, kElementsPerBlock, 1, 0, aligned, CoverKind::elements};
}

SPARSE_ACCEL_HOST_DEVICE Cover cover_runs(GroupLayout layout, int width, bool aligned) {
  const std::int64_t size = layout.outer * layout.inner;
  const std::int64_t piece = larger(kMinPiece, ceil_div(ceil_div(size, kMaxPieces), width) * width);
  const int pieces = int(larger(1, ceil_div(size, piece)));
  return Cover{layout,
               piece,
               pieces,
               short(exponent_of_two(team_of(size, width == 2 ? 8 : 4), kThreads)),
               aligned && layout.inner % width == 0,
               CoverKind::runs};
}

inline Cover cover_columns(GroupLayout layout, int width, bool aligned) {
  const std::int64_t columns = layout.groups * layout.inner;
  const bool packed = aligned && columns % width == 0;
  const std::int64_t packs = columns / (packed ? width : 1);
  int side = power_of_two(packs, 32);  // a warp on one row, unless rows are short or few
  while (side < kThreads && side < packs && kThreads / side > layout.outer) side *= 2;
  const std::int64_t rows = larger(8 * (kThreads / side), ceil_div(layout.outer, kMaxPieces));
  const int chunks = int(larger(1, ceil_div(layout.outer, rows)));
  return Cover{layout, rows, chunks, short(exponent_of_two(side, kThreads)), packed, CoverKind::columns};
}

// Runs or columns, whichever reads the segment's memory in order.
inline Cover cover_groups(GroupLayout layout, int width, bool aligned) {
  if (layout.groups == 1) layout = GroupLayout{1, 1, layout.outer * layout.inner};
  const bool single = layout.outer * layout.inner == 1;
  const bool short_runs = layout.outer > 1 && layout.inner < kShortRun;
  return single || short_runs ? cover_columns(layout, width, aligned) : cover_runs(layout, width, aligned);
}

// Blocks that cover the segment.
inline std::int64_t blocks_of(const Cover& cover, int width) {
  switch (cover.kind) {
    case CoverKind::elements:
      return ceil_div(cover.layout.groups, cover.length);
    case CoverKind::runs:
      return ceil_div(cover.layout.groups * cover.pieces, cover.teams());
    default:
      return ceil_div(cover.columns(), std::int64_t(cover.team()) * (cover.packed ? width : 1)) * cover.pieces;
  }
}

}  // namespace sparse_accel::cuda
