#pragma once
// The CUDA backend: what ops/*.cpp call once arguments are checked and outputs allocated.
// Implemented in cuda/<op>_cuda.cpp (guard, stream, tables, scratch memory), kernels in cuda/<op>.cu.

#include <optional>
#include <vector>

#include "../ops/common.h"

namespace sparse_accel::cuda {

// outputs: one vector per tensor; if coupled, outputs[i] is the same vector for every i.
// Writes the finished score (after the root for l2, over all coupled tensors).
void group_score(const Tensors& tensors, const std::vector<Segment>& segments, const Tensors& outputs, Score kind,
                 bool coupled);

// scores contiguous; masks: bool, as scores; 0 <= k <= total. Raises ValueError on NaN (synchronizes), for every k.
void group_topk(const Tensors& scores, const Tensors& masks, int64_t k);

// values: [N] float64 zeros, or none if not wanted.
void prox_(const Tensors& tensors, const std::vector<Segment>& segments, Prox prox,
           const std::vector<double>& thresholds, const std::optional<Tensor>& values);

// Steps and alphas are read before the update and advanced at its end. They are on the device, or on the CPU: then
// scalars go by value and are advanced on the host, and so must lr and found_inf: numbers, not tensors. With steps,
// alphas and those on the device nothing waits.
void rmda_step_(const Tensors& params, const Tensors& grads, const Tensors& points, const Tensors& anchors,
                const Tensors& steps, const Tensors& alphas, const std::vector<Segment>& segments, Prox prox,
                const std::vector<double>& strengths, double lr, const std::optional<Tensor>& lr_tensor,
                double momentum, bool maximize, const std::optional<Tensor>& grad_scale,
                const std::optional<Tensor>& found_inf);

}  // namespace sparse_accel::cuda
