// RAMDA and AdamW with a penalty: steps that end in the proximal operator in the metric that they bring up to date (see
// metric.h). Groups of one element take one pass. Of longer ones the first pass takes in the gradient; then come
// Newton's steps on the group's norm, and a pass that writes the weights. Where the group fits into shared memory each
// number moves once (metric_rows.cuh, metric_strips.cuh); metric_groups.cuh is the plain way, which takes all else.
#include "metric_step.h"

#include "metric_body.cuh"
#include "metric_groups.cuh"
#include "metric_rows.cuh"
#include "metric_strips.cuh"

namespace sparse_accel::cuda {
namespace {

template <class A>
struct MetricClockOptions {
  MetricSettings settings;
  MetricNow<A>* now;  // [tensors]
};

struct MetricClockEntry {
  MetricClock clock;
  int tensor;
};

// Works out a step's numbers and advances the clock; one block per tensor. Comes first, so that the kernels of the
// update find the numbers ready and read no clock.
template <class A>
__global__ void __launch_bounds__(kThreads)
    metric_clock_kernel(const __grid_constant__ Table<MetricClockEntry, MetricClockOptions<A>> table) {
  if (threadIdx.x != 0) return;
  const MetricClockEntry& entry = table.entries[find_entry(table)];
  const MetricClock& clock = entry.clock;
  const MetricSettings& settings = table.options.settings;
  const double step = clock.step ? double(*clock.step) : clock.step_value;
  const double alpha = clock.alpha ? *clock.alpha : clock.alpha_value;
  const double lr = settings.lr_tensor ? *settings.lr_tensor : settings.lr;
  const double scale = settings.grad_scale ? double(*settings.grad_scale) : 1.0;
  MetricNow<A> now{};
  MetricNumbers<A>& numbers = now.numbers;
  numbers.grad_factor = A((settings.maximize ? -1.0 : 1.0) / scale);
  numbers.eps = A(settings.eps);
  numbers.momentum = A(settings.momentum);
  double next = alpha;
  if (settings.rule == MetricRule::ramda) {
    const RamdaScalars scalars = ramda_scalars(step, alpha, lr);
    next = scalars.alpha;
    numbers.rate = A(scalars.rate);
    now.tau = scalars.alpha * clock.strength;
  } else {
    const AdamwScalars scalars = adamw_scalars(step, lr, settings.beta1, settings.beta2, settings.weight_decay);
    numbers.mean_share = A(1 - settings.beta1);
    numbers.decay = A(settings.beta2);
    numbers.square_share = A(1 - settings.beta2);
    numbers.rest = A(scalars.rest);
    numbers.size = A(scalars.size);
    numbers.inverse_root = A(scalars.inverse_root);
    now.tau = lr * clock.strength;
  }
  numbers.tau = A(now.tau);
  now.skip = settings.found_inf && *settings.found_inf != 0.f;
  table.options.now[entry.tensor] = now;
  if (now.skip) return;
  if (clock.step) *clock.step = float(step + 1.0);
  if (clock.alpha) *clock.alpha = next;
}

template <int N, class T, MetricRule kRule>
__device__ __forceinline__ void metric_elements(const MetricBody<T, kRule>& body, Prox prox, Compute<T> tau,
                                                std::int64_t begin, std::int64_t end) {
  using A = Compute<T>;
  struct Loaded {
    typename MetricBody<T, kRule>::template Loaded<N> first;
    Pack<A, N> last;
  };
  stream<2, std::int64_t>(
      begin + std::int64_t(threadIdx.x) * N, end, kThreads * N, [](std::int64_t i) { return i; },
      [&](std::int64_t at) { return Loaded{body.template load_first<N>(at), body.template load_last<N>(at)}; },
      [&](std::int64_t, std::int64_t at, const Loaded& loaded) {
        Pack<A, N> x, p;
        body.template first<N>(at, loaded.first, x, p);
#pragma unroll
        for (int k = 0; k < N; ++k) {
          if (tau != A(0)) x.value[k] = metric_shrunk_element(prox, x.value[k], p.value[k], tau);
        }
        body.template write<N>(at, x, loaded.last);
      });
}

// No penalty, or groups of one element. Block b takes elements [b, b + 1) * kElementsPerBlock.
template <class T, MetricRule kRule>
__global__ void __launch_bounds__(kThreads, kMetricBlocks<T>)
    metric_elements_kernel(const __grid_constant__ MetricTable<T> table) {
  const Overlap overlap;
  const int i = find_entry(table);
  const MetricEntry<T>& entry = table.entries[i];
  const MetricNow<Compute<T>>& now = table.options.now[entry.tensor];
  if (now.skip) return;
  const MetricBody<T, kRule> body(entry, now, 0);
  const std::int64_t begin = std::int64_t(int(blockIdx.x) - table.first_block[i]) * kElementsPerBlock;
  const std::int64_t size = entry.cover.layout.groups;
  const std::int64_t end = begin + kElementsPerBlock < size ? begin + kElementsPerBlock : size;
  constexpr int kPack = kMetricWidth<T>;
  const std::int64_t tail = entry.cover.packed ? end - (end - begin) % kPack : begin;
  metric_elements<kPack>(body, table.options.prox, now.numbers.tau, begin, tail);
  metric_elements<1>(body, table.options.prox, now.numbers.tau, tail, end);
}

template <class T, MetricRule kRule>
void launch(const std::vector<MetricSegment>& segments, const std::vector<MetricClock>& clocks,
            const MetricSettings& settings, Prox prox, const Allocate& allocate, cudaStream_t stream) {
  using A = Compute<T>;
  auto* const now = static_cast<MetricNow<A>*>(allocate(sizeof(MetricNow<A>) * clocks.size()));
  std::vector<Work<MetricClockEntry>> ticks;
  for (std::size_t i = 0; i < clocks.size(); ++i) ticks.push_back({{clocks[i], int(i)}, 1});
  launch_tables(metric_clock_kernel<A>, ticks, MetricClockOptions<A>{settings, now}, 0, stream);

  std::vector<Work<MetricEntry<T>>> elements, groups;
  MetricRows<T, kRule> rows;
  MetricStrips<T, kRule> strips;
  for (const MetricSegment& segment : segments) {
    const GroupLayout& layout = segment.layout;
    const std::int64_t size = layout.outer * layout.inner, count = size * layout.groups * segment.copies;
    if (count == 0) continue;
    MetricEntry<T> entry{{},
                         static_cast<T*>(segment.param),
                         static_cast<const T*>(segment.grad),
                         static_cast<A*>(segment.dual),
                         static_cast<A*>(segment.square),
                         static_cast<const A*>(segment.anchor),
                         segment.tensor};
    const bool aligned = is_aligned(entry.param) && is_aligned(entry.grad) && is_aligned(entry.dual) &&
                         is_aligned(entry.square) && is_aligned(entry.anchor);
    if (size == 1 || clocks[std::size_t(segment.tensor)].strength == 0) {
      entry.cover = MetricCover{{1, count, 1}, 0, 0, aligned, 1};
      elements.push_back({entry, ceil_div(count, kElementsPerBlock)});
    } else {
      const bool packed = aligned && (segment.copies == 1 || size * layout.groups % kMetricWidth<T> == 0);
      entry.cover = metric_cover(layout, packed, int(segment.copies));
      if (rows.add(entry) || strips.add(entry)) continue;
      groups.push_back({entry, segment.copies * ceil_div(entry.cover.layout.groups, entry.cover.per_block)});
    }
  }
  const MetricOptions<T> options{prox, now};
  Overlapping step;  // short blocks last, which fill what others leave
  strips.run(options, stream, step);
  launch_tables(metric_groups_kernel<T, kRule>, groups, options, 0, stream, 0, &step);
  rows.run(options, stream, step);
  launch_tables(metric_elements_kernel<T, kRule>, elements, options, 0, stream, 0, &step);
}

template <class T>
void launch_rule(const std::vector<MetricSegment>& segments, const std::vector<MetricClock>& clocks,
                 const MetricSettings& settings, Prox prox, const Allocate& allocate, cudaStream_t stream) {
  if (settings.rule == MetricRule::ramda) {
    launch<T, MetricRule::ramda>(segments, clocks, settings, prox, allocate, stream);
  } else {
    launch<T, MetricRule::adamw>(segments, clocks, settings, prox, allocate, stream);
  }
}

}  // namespace

cudaError_t metric_step(DType dtype, const std::vector<MetricSegment>& segments, const std::vector<MetricClock>& clocks,
                        const MetricSettings& settings, Prox prox, const Allocate& allocate, cudaStream_t stream) {
  with_type(dtype, [&](auto zero) { launch_rule<decltype(zero)>(segments, clocks, settings, prox, allocate, stream); });
  return cudaGetLastError();
}

}  // namespace sparse_accel::cuda
