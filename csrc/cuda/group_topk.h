#pragma once
// Launcher of group_topk: raw pointers, sizes and a stream; no torch.
#include <cstdint>
#include <vector>

#include "runtime.h"

namespace sparse_accel::cuda {

struct TopkSegment {
  const void* scores;  // [count]
  bool* mask;          // [count]
  std::int64_t count;
};

// Marks the k largest of all scores together; ties go to the lowest index, segments in order.
// 0 < k <= total count < 2^32. has_nan: one int on the device, set to 1 if any score is NaN, else 0;
// the masks are meaningless then.
cudaError_t group_topk(DType dtype, const std::vector<TopkSegment>& segments, std::int64_t k, int* has_nan,
                       const Allocate& allocate, cudaStream_t stream);

}  // namespace sparse_accel::cuda
