#pragma once
// How strided groups are cut into strips of neighbouring columns for clusters of blocks: what cluster.cuh, the steps in
// a metric and the scores share, on both sides of the launch.
#include "cover.cuh"
#include "vec.cuh"

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

}  // namespace sparse_accel::cuda
