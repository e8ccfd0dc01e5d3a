// RAMDA and AdamW with a penalty: steps that end in the proximal operator in the metric that they bring up to date (see
// metric.h). The first pass takes in the gradient; a group's block then reads the state again, out of the caches, for
// each of Newton's steps on the group's norm, and once more to write the weights. Groups of one element take one pass.
#include "metric_body.cuh"
#include "metric_step.h"
#include "reduce.cuh"

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
  for (std::int64_t i = begin + std::int64_t(threadIdx.x) * N; i < end; i += kThreads * N) {
    Pack<A, N> x, p;
    body.template first<N>(i, x, p);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (tau != A(0)) x.value[k] = metric_shrunk_element(prox, x.value[k], p.value[k], tau);
    }
    body.template write<N>(i, x);
  }
}

// No penalty, or groups of one element. Block b takes elements [b, b + 1) * kElementsPerBlock.
template <class T, MetricRule kRule>
__global__ void __launch_bounds__(kThreads) metric_elements_kernel(const __grid_constant__ MetricTable<T> table) {
  const int i = find_entry(table);
  const MetricEntry<T>& entry = table.entries[i];
  const MetricNow<Compute<T>> now = table.options.now[entry.tensor];
  if (now.skip) return;
  const MetricBody<T, kRule> body(entry, now);
  const std::int64_t begin = std::int64_t(int(blockIdx.x) - table.first_block[i]) * kElementsPerBlock;
  const std::int64_t size = entry.cover.layout.groups;
  const std::int64_t end = begin + kElementsPerBlock < size ? begin + kElementsPerBlock : size;
  constexpr int kPack = kWidth<T>;
  const std::int64_t tail = entry.cover.packed ? end - (end - begin) % kPack : begin;
  metric_elements<kPack>(body, table.options.prox, now.numbers.tau, begin, tail);
  metric_elements<1>(body, table.options.prox, now.numbers.tau, tail, end);
}

// Where a thread's elements lie, and who adds up what threads have found.
class MetricPlace {
 public:
  __device__ MetricPlace(const MetricCover& cover, const Spot& spot) : layout_(cover.layout), team_(cover.team) {
    columns_ = layout_.groups * layout_.inner;
    start_ = spot.copy * (layout_.outer * columns_);
    first_group_ = std::int64_t(spot.block) * cover.per_block;
    const std::int64_t left = layout_.groups - first_group_;
    groups_ = left < cover.per_block ? int(left) : cover.per_block;
    if (team_) {
      slot_ = threadIdx.x / team_;
      begin_ = threadIdx.x & (team_ - 1);
      step_ = team_;
      active_ = slot_ < groups_;
    } else {
      const int width = groups_ * int(layout_.inner), rows = kThreads / width;
      const int row = threadIdx.x / width;
      column_ = threadIdx.x - row * width;
      slot_ = column_ / int(layout_.inner);
      begin_ = row;
      step_ = rows;
      active_ = row < rows;
    }
    end_ = team_ ? layout_.outer * layout_.inner : layout_.outer;
  }

  // visit(offset) of every element of the thread.
  template <class Visit>
  __device__ __forceinline__ void each(const Visit& visit) const {
    if (!active_) return;
    for (std::int64_t i = begin_; i < end_; i += step_) {
      if (!team_) {
        visit(start_ + i * columns_ + first_group_ * layout_.inner + column_);
      } else if (layout_.outer == 1) {
        visit(start_ + group() * layout_.inner + i);
      } else {
        const std::int64_t row = divide(i, layout_.inner);
        visit(start_ + row * columns_ + group() * layout_.inner + (i - row * layout_.inner));
      }
    }
  }

  // Sums over each group's threads, in fixed order, on that thread of the block which leads the group. All threads take
  // part. shared: kThreads numbers.
  __device__ __forceinline__ double sum(double x, double* shared) const {
    if (team_) return team_reduce(x, team_, Add());
    __syncthreads();  // the last call's numbers have been read
    shared[threadIdx.x] = active_ ? x : 0;
    __syncthreads();
    double total = 0;
    if (leads()) {
      const int inner = int(layout_.inner), width = groups_ * inner;
      for (int row = 0; row < step_; ++row) {
        for (int i = 0; i < inner; ++i) total += shared[row * width + int(threadIdx.x) * inner + i];
      }
    }
    return total;
  }

  __device__ bool leads() const { return team_ ? active_ && begin_ == 0 : int(threadIdx.x) < groups_; }
  __device__ int led() const { return team_ ? slot_ : int(threadIdx.x); }  // slot of the group that the thread leads
  __device__ bool active() const { return active_; }
  __device__ int slot() const { return slot_; }
  __device__ std::int64_t group() const { return first_group_ + slot_; }
  __device__ std::int64_t start() const { return start_; }  // of the copy
  __device__ std::int64_t led_group() const { return first_group_ + led(); }

 private:
  const GroupLayout layout_;
  const int team_;
  std::int64_t columns_, start_, first_group_, begin_, end_;
  int groups_, slot_, step_, column_ = 0;
  bool active_;
};

template <class T, MetricRule kRule>
__global__ void __launch_bounds__(kThreads) metric_groups_kernel(const __grid_constant__ MetricTable<T> table) {
  using A = Compute<T>;
  SHARED(double, shared, [kThreads]);
  SHARED(double, norms, [kThreads]);
  const Spot spot = find_spot(table, [](const MetricEntry<T>& one) { return one.cover.copies; });
  const MetricEntry<T>& entry = table.entries[spot.entry];
  const MetricNow<A> now = table.options.now[entry.tensor];
  if (now.skip) return;
  const MetricBody<T, kRule> body(entry, now);
  const MetricPlace place(entry.cover, spot);
  const GroupLayout& layout = entry.cover.layout;
  const double size = double(layout.outer * layout.inner);
  const bool hard = table.options.prox == Prox::hard;
  const double bound = hard ? 2 * now.tau * size : now.tau * std::sqrt(size);
  const A tau = A(bound);

  // Squares of single numbers neither overflow nor vanish in double.
  double square = 0, weighted = 0;
  place.each([&](std::int64_t at) {
    Pack<A, 1> x, p;
    body.template first<1>(at, x, p);
    const double q = double(x.value[0]) * double(p.value[0]);
    square += hard ? q * double(x.value[0]) : q * q;
    weighted += q * q * double(p.value[0]);
  });
  square = place.sum(square, shared);
  weighted = place.sum(weighted, shared);
  MetricRoot root{0, 0, true};
  if (place.leads()) {
    if (hard) {
      root.n = square <= bound ? 0 : 1;
    } else if (metric_in_range<double>(square, weighted)) {
      root = metric_start(square, weighted, bound, 0);
    } else if (now.tau != 0 && (sizeof(A) == 8 || square != 0)) {
      root.n = -1;  // once all threads of the group have written their state
    }
  }
  block_reduce(0.f, Max());
  if (root.n == -1) root.n = body.norm_scaled(layout, place.start(), place.led_group(), bound);

  for (int step = 0;; ++step) {
    if (place.leads()) norms[place.led()] = root.n;
    const float unfinished = block_reduce(place.leads() && !root.done && now.tau != 0 ? 1.f : 0.f, Max());
    if (unfinished == 0.f || step == kMetricSteps) break;
    const A n = place.active() ? A(norms[place.slot()]) : A(0);
    MetricTerm<A> sums{};
    place.each([&](std::int64_t at) {
      A x, p;
      body.again(at, x, p);
      const MetricTerm<A> term = metric_term(x, p, n, tau);
      sums.total += term.total;
      sums.slope += term.slope;
      sums.bend += term.bend;
    });
    const double total = place.sum(double(sums.total), shared);
    const double slope = place.sum(double(sums.slope), shared);
    const double bend = place.sum(double(sums.bend), shared);
    if (place.leads() && !root.done) root = metric_next(root, MetricSums{total, slope, bend}, kMetricTolerance<A>);
    __syncthreads();  // the norms have been read: shuffles order no memory
  }
  const A n = place.active() ? A(norms[place.slot()]) : A(0);
  place.each([&](std::int64_t at) {
    A x, p;
    body.again(at, x, p);
    Pack<A, 1> w{{x}};
    if (now.tau != 0) w.value[0] = hard ? (n == A(0) ? A(0) : x) : metric_shrunk(x, p, n, tau);
    body.template write<1>(at, w);
  });
}

// Groups per block and threads per group.
MetricCover metric_cover(GroupLayout layout, bool aligned, int copies) {
  if (layout.groups == 1) layout = GroupLayout{1, 1, layout.outer * layout.inner};
  const std::int64_t size = layout.outer * layout.inner;
  if (layout.outer > 1 && layout.inner < kShortRun) {
    constexpr int kColumns = 32;  // of a block: 128 bytes of float
    const std::int64_t fit = larger(1, kColumns / layout.inner);
    return MetricCover{layout, int(fit < layout.groups ? fit : layout.groups), 0, aligned, copies};
  }
  const int team = team_of(size);
  return MetricCover{layout, kThreads / team, team, aligned, copies};
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
  for (const MetricSegment& segment : segments) {
    GroupLayout layout = segment.layout;
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
      entry.cover = metric_cover(layout, aligned, int(segment.copies));
      groups.push_back({entry, segment.copies * ceil_div(entry.cover.layout.groups, entry.cover.per_block)});
    }
  }
  const MetricOptions<T> options{prox, now};
  launch_tables(metric_elements_kernel<T, kRule>, elements, options, 0, stream);
  launch_tables(metric_groups_kernel<T, kRule>, groups, options, 0, stream);
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
