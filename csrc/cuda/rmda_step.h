#pragma once
// Launcher of rmda_step_: raw pointers, sizes and a stream; no torch.
#include <vector>

#include "../group_layout.h"
#include "../math.h"
#include "runtime.h"

namespace sparse_accel::cuda {

struct RmdaSegment {
  void* param;              // W   first element of the segment
  const void* grad;         //     dtype of param
  void* point;              // X   compute type; see math.h
  const void* anchor;       // W0  compute type
  GroupLayout layout;       // [outer, groups, inner]
  int tensor;               // whose clock it follows
  std::int64_t copies = 1;  // segments of this layout, one after another
};

// Where a tensor stands in its stage: on the device (read, and advanced there), or by value.
struct RmdaClock {
  float* step;    // t, or null
  double* alpha;  // or null
  double step_value, alpha_value;
  double strength;  // of its penalty
};

struct RmdaSettings {
  Prox prox;
  double lr;
  const double* lr_tensor;  // on the device, replaces lr; or null
  double momentum;
  bool maximize;
  const float* grad_scale;  // on the device, or null
  const float* found_inf;   // on the device, or null
};

// One RMDA step for all segments. clocks: one per tensor.
cudaError_t rmda_step(DType dtype, const std::vector<RmdaSegment>& segments, const std::vector<RmdaClock>& clocks,
                      const RmdaSettings& settings, const Allocate& allocate, cudaStream_t stream);

}  // namespace sparse_accel::cuda
