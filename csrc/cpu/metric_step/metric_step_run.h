#pragma once
// How the CPU backend shares the steps of adaptive methods among threads: strips of whole groups, each small enough
// that what is kept of it between passes stays in a core's cache. How work is cut does not depend on the number of
// threads.
#include <vector>

#include "../../group_layout.h"
#include "metric_step_kernels.h"

namespace sparse_accel::cpu {

// tensors: one task per tensor, its strip empty, its pointers at the tensor's first element. Sizes in bytes.
void run_metric(const std::vector<Segment>& segments, const std::vector<MetricTask>& tensors,
                void (*kernel)(const MetricTask&, double*), int64_t param_size, int64_t state_size);

}  // namespace sparse_accel::cpu
