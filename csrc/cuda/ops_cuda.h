#pragma once
// ATen side of the CUDA backend: what ops/*.cpp call once arguments are checked and outputs allocated.
// Implemented in cuda/<op>_cuda.cpp (guard, stream, tables, scratch memory), kernels in cuda/<op>.cu.
#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "../ops/common.h"

namespace sparse_accel::cuda {

// outputs: one vector per tensor; if coupled, outputs[i] is the same vector for every i.
// Writes the finished score (after the root for l2, over all coupled tensors).
void group_score(const std::vector<at::Tensor>& tensors, const std::vector<Segment>& segments,
                 const std::vector<at::Tensor>& outputs, Score kind, bool coupled);

// scores contiguous; masks: bool, as scores; 0 <= k <= total. Raises ValueError on NaN (synchronizes), for every k.
void group_topk(const std::vector<at::Tensor>& scores, const std::vector<at::Tensor>& masks, int64_t k);

// values: [N] float64 zeros, or undefined if not wanted.
void prox_(const std::vector<at::Tensor>& tensors, const std::vector<Segment>& segments, Prox prox,
           const std::vector<double>& thresholds, const at::Tensor& values);

// Steps and alphas are read before the update and advanced at its end. They are on the device, or on
// the CPU: then scalars go by value and are advanced on the host, which must wait for lr_tensor and found_inf
// if those are on the device. With steps, alphas and those on the device nothing waits.
void rmda_step_(const std::vector<at::Tensor>& params, const std::vector<at::Tensor>& grads,
                const std::vector<at::Tensor>& points, const std::vector<at::Tensor>& anchors,
                const std::vector<at::Tensor>& steps, const std::vector<at::Tensor>& alphas,
                const std::vector<Segment>& segments, Prox prox, const std::vector<double>& strengths, double lr,
                const std::optional<at::Tensor>& lr_tensor, double momentum, bool maximize,
                const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf);

}  // namespace sparse_accel::cuda
