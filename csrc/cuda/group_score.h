#pragma once
// Launcher of group_score: raw pointers, sizes and a stream; no torch.
#include <vector>

#include "../group_layout.h"
#include "../math.h"
#include "runtime.h"

namespace sparse_accel::cuda {

struct ScoreSegment {
  const void* data;         // first element of the segment
  void* output;             // [groups], in the compute type
  GroupLayout layout;       // [outer, groups, inner]
  std::int64_t copies = 1;  // segments of this layout, one after another, and their scores likewise
};

// Scores every group of every segment: sums of `kind` (for l2: of squares), or the largest magnitude.
// `root` takes the square root at the end.
cudaError_t group_score(DType dtype, const std::vector<ScoreSegment>& segments, Score kind, bool root,
                        const Allocate& allocate, cudaStream_t stream);

}  // namespace sparse_accel::cuda
