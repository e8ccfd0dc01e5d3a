// Between tensors and launchers: topk_threshold_.

#include <limits>

#include "guard.h"
#include "topk_threshold.h"
#include "topk_threshold_ops_cuda.h"

namespace sparse_accel::cuda {

void topk_threshold(const Tensor& x, const std::optional<Tensor>& scores, const std::optional<Tensor>& scale,
                    const Tensor& mask, int64_t rows, const std::vector<int64_t>& k) {
  CHECK_VALUE(x.numel() < std::numeric_limits<int>::max(),
              "topk_threshold_: x: expected fewer than 2^31 - 1 elements on CUDA, got ", x.numel());
  const Tensor& source = scores ? *scores : x;
  const TopkTask task{dtype_of(source),
                      !scores,
                      source.const_data_ptr(),
                      scale ? scale->const_data_ptr() : nullptr,
                      x.dim() > 0 ? x.size(-1) : 1,
                      x.numel(),
                      x.mutable_data_ptr(),
                      static_cast<int>(x.element_size()),
                      mask.mutable_data_ptr<bool>()};
  Launch launch(x);
  const Allocate scratch = launch.scratch();
  int* const flag = static_cast<int*>(scratch(sizeof(int)));
  const bool one_size = k.size() == 1 && (k[0] == 0 || k[0] == x.numel() / rows);  // none or all
  if (one_size) launch.check(topk_look(task, flag, launch.stream()));
  if (k.size() == 2) {
    launch.check(topk_blocks(task, static_cast<int>(k[0]), static_cast<int>(k[1]), flag, launch.stream()));
  } else if (!one_size) {
    launch.check(topk_rows(task, rows, k[0], flag, scratch, launch.stream()));
  }
  CHECK_VALUE(launch.read(flag) == 0, "topk_threshold_: scores: expected numbers that can be ordered, got NaN");
  if (!one_size) return;
  launch.fill(mask.mutable_data_ptr(), k[0] != 0, size_t(mask.numel()));
  if (k[0] == 0) launch.fill(x.mutable_data_ptr(), 0, size_t(x.numel()) * x.element_size());
}

void topk_groups(const Tensor& x, const Tensor& mask, const Tensor& keep, const std::vector<int64_t>& layout) {
  Launch launch(x);
  launch.check(topk_groups(x.mutable_data_ptr(), static_cast<int>(x.element_size()), mask.mutable_data_ptr<bool>(),
                           keep.const_data_ptr<bool>(), GroupLayout{layout[0], layout[1], layout[2]}, layout[3],
                           launch.stream()));
}

}  // namespace sparse_accel::cuda
