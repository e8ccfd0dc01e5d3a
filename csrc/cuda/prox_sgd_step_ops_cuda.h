#pragma once
// prox_sgd_step_ on CUDA: what ops/prox_sgd_step.cpp calls once arguments are checked.

#include <optional>
#include <vector>

#include "../ops/common.h"

namespace sparse_accel::cuda {

// Clocks as in rmda_step_: on the device nothing waits; on the CPU they are advanced by the host, and lr and found_inf
// are numbers.
void prox_sgd_step_(const Tensors& params, const Tensors& grads, const Tensors& buffers, const Tensors& steps,
                    const std::vector<Segment>& segments, Prox prox, const std::vector<double>& strengths, double lr,
                    const std::optional<Tensor>& lr_tensor, double rho, bool maximize,
                    const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf);

}  // namespace sparse_accel::cuda
