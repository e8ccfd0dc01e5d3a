#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

namespace sparse_accel {

// The same on ATen's batched algebra, all problems at once and without a synchronization: what runs on CUDA. Fills
// order and damages; a cost is infinite where no unit has a finite one.
void gram_obs_batched(const at::Tensor& inverse, const at::Tensor& weight, int64_t block,
                      const std::optional<at::Tensor>& sets, const at::Tensor& order, const at::Tensor& damages);

}  // namespace sparse_accel
