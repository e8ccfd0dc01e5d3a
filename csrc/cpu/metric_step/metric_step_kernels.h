#pragma once
// The kernels of ramda_step_ and prox_adamw_step_, of each instruction set: plain data in, plain data out.
#include <cstdint>

#include "../../metric.h"
#include "../kernels.h"

namespace sparse_accel {

// Whole groups of one tensor: strip, and the first element of each array. Under AdamW `dual` is the mean of the
// gradients, `square` that of their squares, and there is no anchor.
struct MetricTask {
  Strip strip;
  void* param;
  const void* grad;
  void* dual;
  void* square;
  const void* anchor;
  MetricNumbers<double> numbers;
  double size;  // elements of a group
  Prox prox;
};

// Elements that a kernel takes through all its passes at a time where groups are contiguous.
constexpr int64_t kMetricBlock = 2048;

// What a kernel keeps of a strip, in doubles: x and P of all elements (as many as a block has where groups are
// contiguous), four numbers per column and per group.
inline int64_t metric_scratch(const Strip& s) {
  const int64_t width = s.groups * s.inner;
  const int64_t block = s.inner > kMetricBlock ? s.inner : kMetricBlock;
  const int64_t elements = s.rows > 1 ? s.rows * width : (width < block ? width : block);
  const int64_t columns = s.rows > 1 ? width : elements;
  return 2 * elements + 14 * columns + 256;
}

struct MetricKernels {
  void (*ramda[kDtypes])(const MetricTask&, double* scratch);
  void (*adamw[kDtypes])(const MetricTask&, double* scratch);
};

}  // namespace sparse_accel
