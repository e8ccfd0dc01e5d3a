#pragma once
// Launcher of prox_: raw pointers, sizes and a stream; no torch.
#include <vector>

#include "../group_layout.h"
#include "../math.h"
#include "runtime.h"

namespace sparse_accel::cuda {

struct ProxSegment {
  void* data;               // first element of the segment
  GroupLayout layout;       // [outer, groups, inner]
  double threshold;         // tau of prox_scale
  int tensor;               // which penalty it counts towards; segments of a tensor follow each other
  std::int64_t copies = 1;  // segments of this layout, one after another
};

// Scales every group of every segment in place. values: [tensors], zeroed, gets the penalty of each
// tensor's result, without its strength; null if not wanted.
cudaError_t prox(DType dtype, const std::vector<ProxSegment>& segments, Prox prox, double* values,
                 const Allocate& allocate, cudaStream_t stream);

}  // namespace sparse_accel::cuda
