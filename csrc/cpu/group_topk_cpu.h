#pragma once
#include <cstdint>
#include <vector>

namespace sparse_accel::cpu {

struct ScoreVector {
  const void* scores;
  bool* mask;
  int64_t length;
};

// Sets the masks of the k largest of all scores, ties to the lowest index; 0 <= k <= total; dtype as in dtype_index.
// Raises ValueError on NaN, with nothing written.
void group_topk(int dtype, const std::vector<ScoreVector>& vectors, int64_t k);

}  // namespace sparse_accel::cpu
