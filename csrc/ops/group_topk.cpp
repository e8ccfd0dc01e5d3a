#include "group_topk.h"

#include "../cpu/group_topk_cpu.h"
#include "common.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/ops_cuda.h"
#endif

namespace sparse_accel {

std::vector<at::Tensor> group_topk(const std::vector<at::Tensor>& scores, int64_t k) {
  constexpr const char* kOp = "group_topk";
  check_tensors(kOp, "scores", scores);
  int64_t total = 0;
  std::vector<at::Tensor> inputs, masks;
  for (const auto& score : scores) {
    total += score.numel();
    inputs.push_back(score.contiguous());
    masks.push_back(make_empty(score.sizes(), score.options().dtype(at::kBool)));
  }
  TORCH_CHECK_VALUE(0 <= k && k <= total, kOp, ": k: expected 0 <= k <= ", total, ", the number of scores, got ", k);
  if (scores.empty()) return masks;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(scores[0])) {
    cuda::group_topk(inputs, masks, k);
    return masks;
  }
#endif
  TORCH_CHECK(scores[0].is_cpu(), kOp, ": scores: expected CPU or (in a CUDA build) CUDA tensors, got ",
              scores[0].device());
  std::vector<cpu::ScoreVector> vectors;
  for (size_t i = 0; i < inputs.size(); ++i) {
    vectors.push_back({inputs[i].const_data_ptr(), masks[i].mutable_data_ptr<bool>(), inputs[i].numel()});
  }
  cpu::group_topk(dtype_index(scores[0].scalar_type()), vectors, k);
  return masks;
}

}  // namespace sparse_accel
