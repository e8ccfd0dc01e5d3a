#include "group_score.h"

#include <ATen/Functions.h>

#include "../cpu/schedule.h"
#include "common.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/ops_cuda.h"
#endif

namespace sparse_accel {
namespace {

constexpr const char* kOp = "group_score";

void group_score_cpu(const std::vector<at::Tensor>& tensors, const std::vector<Segment>& segments,
                     const std::vector<at::Tensor>& outputs, Score kind) {
  const int dtype = cpu::dtype_index(tensors[0].scalar_type());
  const auto pieces = cpu::cut(segments);
  std::vector<const char*> inputs;
  std::vector<char*> results;
  for (const auto& t : tensors) inputs.push_back(static_cast<const char*>(t.const_data_ptr()));
  for (const auto& t : outputs) results.push_back(static_cast<char*>(t.mutable_data_ptr()));
  const auto in_size = static_cast<int64_t>(tensors[0].element_size());
  const auto out_size = static_cast<int64_t>(outputs[0].element_size());
  cpu::run(pieces, [&](int64_t i, void* scratch) {
    const cpu::Piece& p = pieces[i];
    cpu::kernels().group_score[dtype](ScoreTask{p.strip, inputs[p.tensor] + p.element * in_size,
                                                results[p.tensor] + p.group * out_size, kind},
                                      scratch);
  });
}

void check_coupled(const std::vector<at::Tensor>& outputs) {
  for (size_t i = 1; i < outputs.size(); ++i) {
    TORCH_CHECK_VALUE(outputs[i].numel() == outputs[0].numel(), kOp, ": layouts[", i, "]: expected ",
                      outputs[0].numel(), " groups as in layouts[0], because the groups are coupled, got ",
                      outputs[i].numel());
  }
}

}  // namespace

std::vector<at::Tensor> group_score(const std::vector<at::Tensor>& tensors, const std::vector<int64_t>& layouts,
                                    const std::string& kind_name, bool coupled) {
  const Score kind = score_from_name(kOp, kind_name);
  check_tensors(kOp, "tensors", tensors);
  TORCH_CHECK_VALUE(!coupled || !tensors.empty(), kOp, ": tensors: expected at least one coupled tensor, got none");
  const auto segments = make_segments(kOp, tensors, layouts);
  if (tensors.empty()) return {};

  const auto options = tensors[0].options().dtype(compute_type(tensors[0].scalar_type()));
  std::vector<at::Tensor> outputs;
  for (size_t i = 0; i < tensors.size(); ++i) {
    outputs.push_back(at::zeros({layouts[4 * i + 1] * layouts[4 * i + 3]}, options));
  }
  if (coupled) check_coupled(outputs);
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(tensors[0])) {
    if (coupled) outputs.assign(tensors.size(), outputs[0]);
    cuda::group_score(tensors, segments, outputs, kind, coupled);
    if (coupled) outputs.resize(1);
    return outputs;
  }
#endif
  TORCH_CHECK(tensors[0].is_cpu(), kOp, ": tensors: expected CPU or (in a CUDA build) CUDA tensors, got ",
              tensors[0].device());
  group_score_cpu(tensors, segments, outputs, kind);
  if (coupled) {
    for (size_t i = 1; i < outputs.size(); ++i) {
      if (kind == Score::amax) {
        at::maximum_out(outputs[0], outputs[0], outputs[i]);
      } else {
        outputs[0].add_(outputs[i]);
      }
    }
    outputs.resize(1);
  }
  if (kind == Score::l2) {
    for (auto& output : outputs) output.sqrt_();
  }
  return outputs;
}

}  // namespace sparse_accel
