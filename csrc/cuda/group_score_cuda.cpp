// ATen side of group_score: tables of pointers from checked tensors.

#include "group_score.h"
#include "guard.h"
#include "ops_cuda.h"

namespace sparse_accel::cuda {

void group_score(const std::vector<at::Tensor>& tensors, const std::vector<Segment>& segments,
                 const std::vector<at::Tensor>& outputs, Score kind, bool coupled) {
  if (tensors.empty()) return;
  Launch launch(tensors[0]);
  const Allocate scratch = launch.scratch();
  // [N, G]: the coupled tensors' own sums, to be combined afterwards
  const int64_t groups = outputs[0].numel();
  at::Tensor parts;
  if (coupled) parts = make_empty({int64_t(tensors.size()), groups}, outputs[0].options());
  std::vector<ScoreSegment> table;
  for (const Segment& segment : segments) {
    void* const output = coupled ? element(parts, segment.tensor * groups + segment.group)
                                 : element(outputs[size_t(segment.tensor)], segment.group);
    table.push_back({const_element(tensors[size_t(segment.tensor)], segment.element), output, segment.layout});
  }
  const bool root = kind == Score::l2;
  launch.check(group_score(dtype_of(tensors[0]), table, kind, root && !coupled, scratch, launch.stream()));
  if (!coupled) return;
  const ScoreSegment combine{parts.const_data_ptr(), outputs[0].mutable_data_ptr(),
                             GroupLayout{int64_t(tensors.size()), groups, 1}};
  const Score combined = kind == Score::amax ? Score::amax : Score::sum;
  launch.check(group_score(dtype_of(parts), {combine}, combined, root, scratch, launch.stream()));
}

}  // namespace sparse_accel::cuda
