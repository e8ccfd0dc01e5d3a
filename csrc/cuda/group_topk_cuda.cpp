// Between tensors and launchers: group_topk.

#include <limits>

#include "group_topk.h"
#include "guard.h"
#include "ops_cuda.h"

namespace sparse_accel::cuda {

void group_topk(const Tensors& scores, const Tensors& masks, int64_t k) {
  std::vector<TopkSegment> table;
  int64_t total = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (scores[i].numel() == 0) continue;
    table.push_back({scores[i].const_data_ptr(), masks[i].mutable_data_ptr<bool>(), scores[i].numel()});
    total += scores[i].numel();
  }
  if (table.empty()) return;
  CHECK_VALUE(total < std::numeric_limits<int>::max(), "group_topk: scores: expected fewer than 2^31 numbers, got ",
              total);
  Launch launch(scores[0]);
  const Allocate scratch = launch.scratch();
  int* const has_nan = static_cast<int*>(scratch(sizeof(int)));
  // Nothing chosen: the first pass is still wanted, for its look at NaN.
  const int64_t chosen = k > 0 ? k : 1;
  launch.check(group_topk(dtype_of(scores[0]), table, chosen, has_nan, scratch, launch.stream()));
  CHECK_VALUE(launch.read(has_nan) == 0, "group_topk: scores: expected numbers that can be ordered, got NaN");
  for (size_t i = 0; i < masks.size() && k == 0; ++i) {
    launch.fill(masks[i].mutable_data_ptr(), 0, size_t(masks[i].numel()));
  }
}

}  // namespace sparse_accel::cuda
