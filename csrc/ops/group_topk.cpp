#include "group_topk.h"

#include "../cpu/group_topk_cpu.h"
#include "common.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/ops_cuda.h"
#endif

namespace sparse_accel {

void group_topk(const Tensors& scores, const Tensors& masks, std::int64_t k) {
  constexpr const char* kOp = "group_topk";
  check_tensors(kOp, "scores", scores);
  CHECK_VALUE(masks.size() == scores.size(), kOp, ": masks: expected ", scores.size(), ", got ", masks.size());
  std::int64_t total = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    total += scores[i].numel();
    check_array(kOp, "scores", scores[i], scores[0], scores[0].scalar_type(), scores[i].sizes());
    check_array(kOp, "masks", masks[i], scores[0], kBool, scores[i].sizes());
  }
  CHECK_VALUE(0 <= k && k <= total, kOp, ": k: expected 0 <= k <= ", total, ", the number of scores, got ", k);
  if (scores.empty()) return;
  check_device(kOp, "scores", scores[0]);
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(scores[0])) return cuda::group_topk(scores, masks, k);
#endif
  std::vector<cpu::ScoreVector> vectors;
  for (size_t i = 0; i < scores.size(); ++i) {
    vectors.push_back({scores[i].const_data_ptr(), masks[i].mutable_data_ptr<bool>(), scores[i].numel()});
  }
  cpu::group_topk(dtype_index(scores[0].scalar_type()), vectors, k);
}

}  // namespace sparse_accel
