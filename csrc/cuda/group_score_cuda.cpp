// Between tensors and launchers: group_score: tables of pointers from checked tensors.

#include "group_score.h"
#include "guard.h"
#include "ops_cuda.h"

namespace sparse_accel::cuda {

void group_score(const Tensors& tensors, const std::vector<Segment>& segments, const Tensors& outputs, Score kind,
                 bool coupled) {
  if (tensors.empty()) return;
  Launch launch(tensors[0]);
  const Allocate scratch = launch.scratch();
  // [N, G]: the coupled tensors' own sums, to be combined afterwards
  const int64_t groups = outputs[0].numel();
  const auto score_size = int64_t(outputs[0].element_size());
  char* const parts =
      coupled ? static_cast<char*>(scratch(size_t(int64_t(tensors.size()) * groups * score_size))) : nullptr;
  std::vector<ScoreSegment> table;
  int64_t previous = -1;
  for (const Segment& segment : segments) {
    if (segment.tensor == previous) {  // its layout's next block
      ++table.back().copies;
      continue;
    }
    previous = segment.tensor;
    void* const output = coupled ? parts + (segment.tensor * groups + segment.group) * score_size
                                 : element(outputs[size_t(segment.tensor)], segment.group);
    table.push_back({const_element(tensors[size_t(segment.tensor)], segment.element), output, segment.layout});
  }
  const bool root = kind == Score::l2;
  launch.check(group_score(dtype_of(tensors[0]), table, kind, root && !coupled, scratch, launch.stream()));
  if (!coupled) return;
  const ScoreSegment combine{parts, outputs[0].mutable_data_ptr(), GroupLayout{int64_t(tensors.size()), groups, 1}};
  const Score combined = kind == Score::amax ? Score::amax : Score::sum;
  launch.check(group_score(dtype_of(outputs[0]), {combine}, combined, root, scratch, launch.stream()));
}

}  // namespace sparse_accel::cuda
