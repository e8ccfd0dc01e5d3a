#pragma once
// ATen side of topk_threshold_ on CUDA; arguments are checked, outputs allocated.
#include <ATen/core/Tensor.h>

#include <vector>

namespace sparse_accel::cuda {

// x and mask contiguous, not empty; scores contiguous or undefined (|x|); scale [columns] in the compute type or
// undefined. k: {k} of each row, or {n, m}. Raises ValueError on NaN, with nothing changed (synchronizes).
void topk_threshold(const at::Tensor& x, const at::Tensor& scores, const at::Tensor& scale, const at::Tensor& mask,
                    int64_t rows, const std::vector<int64_t>& k);

// layout: outer, groups, inner, blocks of x, dense; keep [blocks * groups]; mask as x.
void topk_groups(const at::Tensor& x, const at::Tensor& mask, const at::Tensor& keep,
                 const std::vector<int64_t>& layout);

}  // namespace sparse_accel::cuda
