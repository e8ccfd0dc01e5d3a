#pragma once
// Launcher of ramda_step_ and prox_adamw_step_: raw pointers, sizes and a stream; no torch.
#include <vector>

#include "../group_layout.h"
#include "../math.h"
#include "runtime.h"

namespace sparse_accel::cuda {

enum class MetricRule : int { ramda, adamw };

struct MetricSegment {
  void* param;              // W     first element of the segment
  const void* grad;         //       dtype of param
  void* dual;               // V, m  compute type
  void* square;             // U, v  compute type
  const void* anchor;       // W0    compute type; null under AdamW
  GroupLayout layout;       // [outer, groups, inner]
  int tensor;               // whose clock it follows
  std::int64_t copies = 1;  // segments of this layout, one after another
};

// How far a tensor has come: on the device (read, and advanced there), or by value.
struct MetricClock {
  float* step;    // t, or null
  double* alpha;  // RAMDA; or null
  double step_value, alpha_value;
  double strength;  // of its penalty
};

struct MetricSettings {
  MetricRule rule;
  double lr;
  double momentum;  // RAMDA
  double eps;
  double beta1, beta2, weight_decay;  // AdamW
  bool maximize;
  const double* lr_tensor;  // on the device, replaces lr; or null
  const float* grad_scale;  // on the device, or null
  const float* found_inf;   // on the device, or null
};

// One step for all segments. clocks: one per tensor.
cudaError_t metric_step(DType dtype, const std::vector<MetricSegment>& segments, const std::vector<MetricClock>& clocks,
                        const MetricSettings& settings, Prox prox, const Allocate& allocate, cudaStream_t stream);

}  // namespace sparse_accel::cuda
