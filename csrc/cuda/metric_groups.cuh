#pragma once
// Groups under a metric, the plain way, for whatever does not fit into shared memory: a group's block reads the state
// again, out of the caches, for each of Newton's steps on the group's norm, and once more to write the weights.
#include "metric_body.cuh"
#include "reduce.cuh"

namespace sparse_accel::cuda {

// Where a thread's elements lie, and who adds up what threads have found.
class MetricPlace {
 public:
  __device__ MetricPlace(const MetricCover& cover, const Spot& spot) : layout_(cover.layout), team_(cover.team) {
    columns_ = layout_.groups * layout_.inner;
    first_group_ = std::int64_t(spot.block) * cover.per_block;
    const std::int64_t left = layout_.groups - first_group_;
    groups_ = left < cover.per_block ? int(left) : cover.per_block;
    if (team_) {
      slot_ = 0;
      begin_ = threadIdx.x;
      step_ = team_;
      active_ = true;
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
        visit(i * columns_ + first_group_ * layout_.inner + column_);
      } else if (layout_.outer == 1) {
        visit(group() * layout_.inner + i);
      } else {
        const std::int64_t row = divide(i, layout_.inner);
        visit(row * columns_ + group() * layout_.inner + (i - row * layout_.inner));
      }
    }
  }

  // Sums over each group's threads, in fixed order, on that thread of the block which leads the group. All threads take
  // part. shared: kThreads numbers.
  __device__ __forceinline__ double sum(double x, double* shared) const {
    if (team_) return block_reduce(x, Add());
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
  __device__ std::int64_t led_group() const { return first_group_ + led(); }

 private:
  const GroupLayout layout_;
  const int team_;
  std::int64_t columns_, first_group_, begin_, end_;
  int groups_, slot_, step_, column_ = 0;
  bool active_;
};

template <class T, MetricRule kRule>
__global__ void __launch_bounds__(kThreads) metric_groups_kernel(const __grid_constant__ MetricTable<T> table) {
  using A = Compute<T>;
  const Overlap overlap;
  SHARED(double, shared, [kThreads]);
  SHARED(double, norms, [kThreads]);
  const Spot spot = find_spot(table, [](const MetricEntry<T>& one) { return one.cover.copies; });
  const MetricEntry<T>& entry = table.entries[spot.entry];
  const MetricNow<A> now = table.options.now[entry.tensor];
  if (now.skip) return;
  const MetricBody<T, kRule> body(entry, now, spot.copy * entry.cover.size());
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
    body.template first<1>(at, body.template load_first<1>(at), x, p);
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
  if (root.n == -1) root.n = body.norm_scaled(layout, place.led_group(), bound);

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
  }
  const A n = place.active() ? A(norms[place.slot()]) : A(0);
  place.each([&](std::int64_t at) {
    A x, p;
    body.again(at, x, p);
    Pack<A, 1> w{{x}};
    if (now.tau != 0) w.value[0] = hard ? (n == A(0) ? A(0) : x) : metric_shrunk(x, p, n, tau);
    body.template write<1>(at, w, body.template load_last<1>(at));
  });
}

// Groups per block, and threads per group: a whole block, as what comes here is long.
inline MetricCover metric_cover(GroupLayout layout, bool aligned, int copies) {
  if (layout.groups == 1) layout = GroupLayout{1, 1, layout.outer * layout.inner};
  if (layout.outer > 1 && layout.inner < kShortRun) {
    constexpr int kColumns = 32;  // of a block: 128 bytes of float
    const std::int64_t fit = larger(1, kColumns / layout.inner);
    return MetricCover{layout, int(fit < layout.groups ? fit : layout.groups), 0, aligned, copies};
  }
  return MetricCover{layout, 1, kThreads, aligned, copies};
}

}  // namespace sparse_accel::cuda
