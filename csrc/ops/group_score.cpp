#include "group_score.h"

#include "../cpu/isa/kernel_set.h"
#include "../cpu/schedule.h"
#include "common.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/ops_cuda.h"
#endif

namespace sparse_accel {
namespace {

constexpr const char* kGroupScore = "group_score";

void group_score_cpu(const std::vector<at::Tensor>& tensors, const std::vector<Segment>& segments,
                     const std::vector<at::Tensor>& outputs, Score kind) {
  const int dtype = dtype_index(tensors[0].scalar_type());
  const auto element_size = static_cast<int64_t>(tensors[0].element_size());
  const auto score_size = static_cast<int64_t>(outputs[0].element_size());
  std::vector<const char*> inputs;
  std::vector<char*> scores;
  for (const auto& t : tensors) inputs.push_back(static_cast<const char*>(t.const_data_ptr()));
  for (const auto& t : outputs) scores.push_back(static_cast<char*>(t.mutable_data_ptr()));
  const Kernels& kernels = cpu::kernel_set().groups;
  const auto task = [&](const cpu::Piece& p) {
    return ScoreTask{p.strip, inputs[p.tensor] + p.element * element_size, kind};
  };
  const auto scores_of = [&](const cpu::Piece& p) { return scores[p.tensor] + p.group * score_size; };

  cpu::Work work;
  work.sum_size = score_size;
  work.whole = [&](const cpu::Piece& p, void* scratch) { kernels.score[dtype](task(p), scores_of(p), scratch); };
  work.sums = [&](const cpu::Piece& p, void* sums) { kernels.score_sums[dtype](task(p), sums); };
  work.join = [&](const cpu::Piece& p, void* sums, int64_t parts) {
    kernels.score_join[dtype](task(p), sums, parts, scores_of(p));
  };
  cpu::run(segments, work);
}

void check_coupled(const std::vector<at::Tensor>& outputs) {
  for (size_t i = 1; i < outputs.size(); ++i) {
    TORCH_CHECK_VALUE(outputs[i].numel() == outputs[0].numel(), kGroupScore, ": layouts[", i, "]: expected ",
                      outputs[0].numel(), " groups as in layouts[0], because the groups are coupled, got ",
                      outputs[i].numel());
  }
}

}  // namespace

std::vector<at::Tensor> group_score(const std::vector<at::Tensor>& tensors, const std::vector<int64_t>& layouts,
                                    const std::string& kind_name, bool coupled) {
  const Score kind = score_from_name(kGroupScore, kind_name);
  check_tensors(kGroupScore, "tensors", tensors);
  TORCH_CHECK_VALUE(!coupled || !tensors.empty(), kGroupScore,
                    ": tensors: expected at least one coupled tensor, got none");
  const auto segments = make_segments(kGroupScore, tensors, layouts);
  if (tensors.empty()) return {};

  const auto options = tensors[0].options().dtype(compute_type(tensors[0].scalar_type()));
  std::vector<at::Tensor> outputs;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t groups = layouts[4 * i + 1] * layouts[4 * i + 3];
    // Kernels write every score of a tensor that has elements.
    outputs.push_back(tensors[i].numel() ? make_empty({groups}, options) : make_zeros({groups}, options));
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
  TORCH_CHECK(tensors[0].is_cpu(), kGroupScore, ": tensors: expected CPU or (in a CUDA build) CUDA tensors, got ",
              tensors[0].device());
  group_score_cpu(tensors, segments, outputs, kind);
  if (coupled) {
    for (size_t i = 1; i < outputs.size(); ++i) {
      if (kind == Score::amax) {
        outputs[0] = outputs[0].maximum(outputs[i]);
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
