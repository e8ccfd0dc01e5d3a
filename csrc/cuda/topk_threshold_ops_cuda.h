#pragma once
// topk_threshold_ on CUDA; arguments are checked, outputs allocated.

#include <vector>

namespace sparse_accel::cuda {

// x and mask contiguous, not empty; scores contiguous or none (|x|); scale [columns] in the compute type or
// none. k: {k} of each row, or {n, m}. Raises ValueError on NaN, with nothing changed (synchronizes).
void topk_threshold(const Tensor& x, const std::optional<Tensor>& scores, const std::optional<Tensor>& scale,
                    const Tensor& mask, int64_t rows, const std::vector<int64_t>& k);

// layout: outer, groups, inner, blocks of x, dense; keep [blocks * groups]; mask as x.
void topk_groups(const Tensor& x, const Tensor& mask, const Tensor& keep, const std::vector<int64_t>& layout);

}  // namespace sparse_accel::cuda
