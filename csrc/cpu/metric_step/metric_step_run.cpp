#include "metric_step_run.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "../../torch_runtime.h"

namespace sparse_accel::cpu {
namespace {

constexpr int64_t kMetricSerial = 16384;  // elements in all below which threads cost more than they give
constexpr int64_t kMetricPiece = 65536;   // elements of a strip: x and P of so many stay in the second-level cache
constexpr int64_t kMetricColumns = 64;    // of a strip at least, however long: rows are read in whole cache lines

// Groups of a strip, evenly.
int64_t metric_strip_groups(const GroupLayout& layout) {
  const int64_t size = layout.outer * layout.inner;
  int64_t most = kMetricPiece / size;
  if (layout.outer > 1) most = std::max(most, (kMetricColumns + layout.inner - 1) / layout.inner);
  most = std::max<int64_t>(1, most);
  const int64_t strips = (layout.groups + most - 1) / most;
  return (layout.groups + strips - 1) / strips;
}

void* moved(void* pointer, int64_t bytes) { return static_cast<char*>(pointer) + bytes; }
const void* moved(const void* pointer, int64_t bytes) {
  return pointer ? static_cast<const char*>(pointer) + bytes : nullptr;
}

}  // namespace

void run_metric(const std::vector<Segment>& segments, const std::vector<MetricTask>& tensors,
                void (*kernel)(const MetricTask&, double*), int64_t param_size, int64_t state_size) {
  std::vector<MetricTask> tasks;
  int64_t elements = 0, scratch = 0;
  for (const Segment& segment : segments) {
    GroupLayout layout = segment.layout;
    if (layout.outer * layout.groups * layout.inner == 0) continue;
    const MetricTask& of_tensor = tensors[segment.tensor];
    const double size = static_cast<double>(layout.outer * layout.inner);
    if (of_tensor.numbers.tau == 0) layout = GroupLayout{1, layout.outer * layout.groups * layout.inner, 1};
    if (layout.groups == 1) layout = GroupLayout{1, 1, layout.outer * layout.inner};
    const int64_t step = metric_strip_groups(layout);
    for (int64_t g = 0; g < layout.groups; g += step) {
      MetricTask task = of_tensor;
      const int64_t first = segment.element + g * layout.inner;
      task.strip = Strip{layout.outer, layout.groups * layout.inner, std::min(step, layout.groups - g), layout.inner};
      task.param = moved(task.param, first * param_size);
      task.grad = moved(task.grad, first * param_size);
      task.dual = moved(task.dual, first * state_size);
      task.square = moved(task.square, first * state_size);
      task.anchor = moved(task.anchor, first * state_size);
      task.size = size;
      if (task.prox == Prox::soft) task.numbers.tau *= std::sqrt(size);
      elements += task.strip.rows * task.strip.groups * task.strip.inner;
      scratch = std::max(scratch, metric_scratch(task.strip));
      tasks.push_back(task);
    }
  }
  std::atomic<size_t> next{0};
  const auto work_on = [&](int64_t, int64_t) {
    const std::unique_ptr<double, decltype(&std::free)> memory(
        static_cast<double*>(std::aligned_alloc(64, (scratch * int64_t(sizeof(double)) + 63) / 64 * 64)), &std::free);
    CHECK_RUN(memory || scratch == 0, "sparse_accel: no memory for the sums of a tensor");
    for (size_t i = next++; i < tasks.size(); i = next++) kernel(tasks[i], memory.get());
  };
  const int64_t threads = elements < kMetricSerial ? 1 : num_threads();
  if (threads == 1) {
    work_on(0, 1);
  } else {
    parallel_for(0, threads, 1, work_on);
  }
}

}  // namespace sparse_accel::cpu
