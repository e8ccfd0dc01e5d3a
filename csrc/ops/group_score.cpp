#include "group_score.h"

#include <cmath>

#include "../cpu/isa/kernel_set.h"
#include "../cpu/schedule.h"
#include "common.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/ops_cuda.h"
#endif

namespace sparse_accel {
namespace {

constexpr const char* kGroupScore = "group_score";

void group_score_cpu(const Tensors& tensors, const std::vector<Segment>& segments, const Tensors& outputs, Score kind) {
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

// Of all coupled tensors into the first's; and the roots.
template <class T>
void finish(const Tensors& outputs, Score kind, bool coupled) {
  for (size_t i = 1; i < outputs.size() && coupled; ++i) {
    T* const total = outputs[0].mutable_data_ptr<T>();
    const T* const own = outputs[i].const_data_ptr<T>();
    for (int64_t g = 0; g < outputs[0].numel(); ++g) {
      const T larger = own[g] != own[g] || own[g] > total[g] ? own[g] : total[g];  // a NaN stays
      total[g] = kind == Score::amax ? larger : total[g] + own[g];
    }
  }
  for (size_t i = 0; i < (coupled ? 1 : outputs.size()) && kind == Score::l2; ++i) {
    T* const own = outputs[i].mutable_data_ptr<T>();
    for (int64_t g = 0; g < outputs[i].numel(); ++g) own[g] = std::sqrt(own[g]);
  }
}

}  // namespace

void group_score(const Tensors& tensors, const std::vector<std::int64_t>& layouts, const Tensors& outputs,
                 const std::string& kind_name, bool coupled) {
  const Score kind = score_from_name(kGroupScore, kind_name);
  check_tensors(kGroupScore, "tensors", tensors);
  const auto segments = make_segments(kGroupScore, tensors, layouts);
  if (tensors.empty()) return;
  check_device(kGroupScore, "tensors", tensors[0]);
  CHECK_VALUE(outputs.size() == tensors.size(), kGroupScore, ": outputs: expected one for each of ", tensors.size(),
              " tensors, got ", outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    const std::int64_t groups = layouts[4 * i + 1] * layouts[4 * i + 3];
    CHECK_VALUE(!coupled || groups == outputs[0].numel(), kGroupScore, ": layouts[", i, "]: expected ",
                outputs[0].numel(), " groups as in layouts[0], because the groups are coupled, got ", groups);
    check_array(kGroupScore, "outputs", outputs[i], tensors[0], compute_type(tensors[0].scalar_type()), {groups});
  }
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(tensors[0])) return cuda::group_score(tensors, segments, outputs, kind, coupled);
#endif
  group_score_cpu(tensors, segments, outputs, kind);
  (outputs[0].scalar_type() == kDouble ? finish<double> : finish<float>)(outputs, kind, coupled);
}

}  // namespace sparse_accel
