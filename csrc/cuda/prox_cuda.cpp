// Between tensors and launchers: prox_.
#include "guard.h"
#include "ops_cuda.h"
#include "prox.h"

namespace sparse_accel::cuda {

void prox_(const Tensors& tensors, const std::vector<Segment>& segments, Prox prox,
           const std::vector<double>& thresholds, const std::optional<Tensor>& values) {
  if (tensors.empty()) return;
  Launch launch(tensors[0]);
  std::vector<ProxSegment> table;
  for (const Segment& segment : segments) {
    const auto i = size_t(segment.tensor);
    if (!table.empty() && table.back().tensor == segment.tensor) {  // its layout's next block
      ++table.back().copies;
      continue;
    }
    table.push_back({element(tensors[i], segment.element), segment.layout, thresholds[i], int(segment.tensor)});
  }
  double* const sums = values ? values->mutable_data_ptr<double>() : nullptr;
  launch.check(cuda::prox(dtype_of(tensors[0]), table, prox, sums, launch.scratch(), launch.stream()));
}

}  // namespace sparse_accel::cuda
