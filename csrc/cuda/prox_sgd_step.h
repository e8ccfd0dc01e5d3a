#pragma once
// Launcher of prox_sgd_step_: raw pointers, sizes and a stream; no torch.
#include <vector>

#include "../group_layout.h"
#include "../math.h"
#include "runtime.h"

namespace sparse_accel::cuda {

struct SgdSegment {
  void* param;              // W  first element of the segment
  const void* grad;         //    dtype of param
  void* buffer;             // M  compute type
  GroupLayout layout;       // [outer, groups, inner]
  int tensor;               // whose clock it follows
  std::int64_t copies = 1;  // segments of this layout, one after another
};

struct SgdClock {
  float* step;      // t on the device, advanced there; or null
  double strength;  // of the tensor's penalty
};

struct SgdSettings {
  Prox prox;
  double lr;
  const double* lr_tensor;  // on the device, replaces lr; or null
  double rho;
  bool maximize;
  const float* grad_scale;  // on the device, or null
  const float* found_inf;   // on the device, or null
};

// One ProxSGD step for all segments. clocks: one per tensor.
cudaError_t prox_sgd_step(DType dtype, const std::vector<SgdSegment>& segments, const std::vector<SgdClock>& clocks,
                          const SgdSettings& settings, const Allocate& allocate, cudaStream_t stream);

}  // namespace sparse_accel::cuda
